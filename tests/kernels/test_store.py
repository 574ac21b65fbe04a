"""Layout of the packed store."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.kernels.store import allocate, capacities, move, period, select, slab_block, slots, text_block
from moa.plans.span import cache_blocks

blocks_per_slab = st.integers(1, 3).flatmap(
    lambda groups: st.lists(st.lists(st.integers(0, 5), min_size=groups, max_size=groups), min_size=1, max_size=4)
)


@settings(deadline=None, max_examples=50)
@given(blocks=blocks_per_slab)
def test_slabs_tile_the_store_and_runs_describe_them(blocks):
    capacity = 64 * np.array(blocks)
    store = allocate(capacity, 8, torch.bfloat16, "cpu")
    slabs = sorted((int(b), int(c)) for b, c in zip(store.base.flatten(), store.capacity.flatten(), strict=True) if c)
    end = 0
    for base, size in slabs:
        assert base == end
        end += size
    assert end == len(store.k) == capacity.sum()
    assert store.nbytes == capacity.sum() * 8 * 2 * 2
    described = []
    for run in store.runs:
        for i, pair in enumerate(run.pairs.tolist()):
            assert int(store.base.flatten()[pair]) == run.start + i * run.slots
            assert int(store.capacity.flatten()[pair]) == run.slots
            described.append(pair)
    assert described == store.order.tolist()
    assert sorted(described) == np.flatnonzero(capacity).tolist()
    starts = store.base[store.sequence, store.group] + 64 * store.place
    assert torch.equal(starts, 64 * torch.arange(end // 64))


@settings(deadline=None, max_examples=200)
@given(sink=st.integers(0, 3), ring=st.integers(1, 9), last=st.integers(0, 60))
def test_text_block_inverts_slab_block(sink, ring, last):
    sinks, capacity, newest = torch.tensor(sink), torch.tensor(64 * (sink + ring)), torch.tensor(last)
    held = {int(slab_block(torch.tensor(j), sinks, capacity)): j for j in range(last + 1)}  # later blocks overwrite
    for place in range(sink + ring):
        at = torch.tensor(place)
        found = int(text_block(at, period(at, sinks, capacity), newest))
        assert found == held.get(place, found)
        assert (found <= last) == (place in held)


def test_capacities_are_the_plans(kit):
    rules = kit.Rules(np.array([64, 0]), np.array([300, 0]), np.array([0, 128]))
    got = capacities(rules.reach, [1, 1000])
    expected = [[64 * int(cache_blocks(*rule, n)) for rule in ((64, 300, 0), (0, 0, 128))] for n in (1, 1000)]
    assert got.tolist() == expected


def test_tables_lie_as_kernels_read_them():
    slots = 64 * np.array([[1, 2], [3, 4], [5, 6]]).T  # as sums over rules come: the sequences last in memory
    store = allocate(slots, 4, torch.float32, "cpu")
    assert store.capacity.tolist() == slots.tolist()
    assert store.capacity.is_contiguous()
    assert store.base.is_contiguous()


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_move_and_select_keep_every_wanted_key(kit, data):
    rules = data.draw(kit.rule_sets(groups=2))
    lengths = data.draw(st.lists(st.integers(0, 600), min_size=2, max_size=2))
    whole = kit.text(lengths, 2, 2, 4, 0)
    small = kit.store_of(whole, rules, lengths)
    large = allocate(small.capacity.numpy() + 64 * data.draw(st.integers(0, 3)), 4, torch.float64, "cpu")
    sink = torch.from_numpy(rules.sink)
    move(small, large, sink=sink, lengths=torch.tensor(lengths))
    beams = select(large, torch.tensor([1, 1, 0]))
    for i, s in enumerate([1, 1, 0]):
        for g in range(2):
            last = lengths[s]
            at = torch.tensor([p for p in range(last) if kit.sees(rules, g, last, p)], dtype=torch.int64)
            where = slots(at, sink[g], beams.base[i, g], beams.capacity[i, g])
            assert torch.equal(beams.k[where], whole.k[s][at, g])
            assert torch.equal(beams.v[where], whole.v[s][at, g])
