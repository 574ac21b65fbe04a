"""Sinks of other keys under the interpreter: what back-end `reference` leaves in them, to the last bit."""

import numpy as np
import pytest
import torch

from moa.kernels.backend import load
from moa.kernels.call import Packed
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities, select

TAKEN_BACK = [[190, 250], [193, 256], [230, 260], [180, 240], [330, 260]]
ROOM, HOLDS = 800, ("keydiff", "keydiff", "first")
STEPS = [[255, 191], [256, 192], [257, 193], [270, 200], [262, 199], [330, 260]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ends", [[[101, 1], [166, 259], [330, 260]], STEPS, TAKEN_BACK])
def test_sinks_are_the_reference_s(kit, dtype, ends):
    rules = kit.Rules(np.array([64, 64]), np.array([128, 100]), np.array([0, 60]))
    keys = kit.texts_of_ties([330, 260], 2, 16, 0, dtype)
    found, wanted = (
        kit.sinks_after("triton", keys, ends, rules),
        kit.sinks_after("reference", keys, [[330, 260]], rules),
    )
    for mine, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))


def life(name, rules, keys, seed):
    """What sinks hold after each of many random calls, crops and reorderings of a ragged batch."""
    rng = np.random.default_rng(seed)
    store = allocate(capacities(rules.reach, np.full(3, ROOM)), 16, torch.float32, "cpu")
    sinks = Sinks(rules.sink, HOLDS, rules.first_at, 3, torch.device("cpu"))
    past, backend, states = np.zeros(3, np.int64), load(name), []

    def feed(counts, stays=()):
        k = torch.cat([x[b : b + n] for x, b, n in zip(keys, past, counts, strict=True)])
        cu_seqlens = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
        attend(
            k.repeat_interleave(2, 1), k, 2 * k, seen=rules.seen(ROOM), softmax=Softmax(0.3), backend=backend,
            batch=Packed(cu_seqlens, torch.from_numpy(past.copy()), int(counts.max()), bool(counts.all())),
            store=store, sinks=sinks, grown=lambda: store,
        )  # fmt: skip
        past[:] += np.where(np.isin(np.arange(3), stays), 0, counts)  # a padded token is written too

    feed(np.array([0, 70, 200]))
    for _ in range(3):
        feed((64 * rng.integers(1, 3, 3) - past - rng.integers(0, 4, 3)) % 128)  # nearly to the ends of blocks
        for _ in range(5):
            feed(np.ones(3, np.int64), rng.permutation(3)[: rng.integers(0, 3)])
        left = past - np.minimum(rng.integers(0, 65, 3), past)
        if sinks.can_take_back(rules.first_at(left)):
            sinks.take_back(store, rules.first_at(left))
            past[:] = left
        index = torch.from_numpy(rng.integers(0, 3, 3))
        store, sinks = select(store, index), sinks.select(index)
        past[:], keys = past[index.numpy()], [keys[i] for i in index.tolist()]
        for g in sinks.groups.tolist():
            size = int(rules.sink[g])
            for s in range(3):
                moved = int(sinks.folded[s, g]) > size // 64
                seen = size + 64 * int(sinks.can_undo[s, g]) if moved else 0
                at = store.base[s, g] + torch.arange(min(size, int(past[s])))
                states.append((sinks.folded[s, g], sinks.position[s, g, :seen], sinks.score[s, g, :seen], store.k[at]))
    return states


@pytest.mark.parametrize("seed", range(2))
def test_a_random_life_leaves_the_reference_s_sinks(kit, seed):
    rules = kit.Rules(np.array([64, 128, 64]), np.array([128, 192, 100]), np.array([0, 0, 60]))
    keys = kit.texts_of_ties([ROOM] * 3, 3, 16, seed, torch.float32)
    found, wanted = (life(name, rules, keys, seed) for name in ("triton", "reference"))
    assert any(int(state[0]) > 2 for state in wanted)
    for mine, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
