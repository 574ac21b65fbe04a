"""Reference, torch and numba back-ends against a dense masked softmax over the whole text."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.kernels import backend
from moa.kernels.call import Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities, move, select

SCALE = 0.3
# The decode of torch reads whole slabs: finite, whatever they hold.
GARBAGE = {"reference": float("nan"), "torch": 1e3, "numba": float("nan")}
each = pytest.mark.parametrize("name", list(GARBAGE))


@each
@pytest.mark.parametrize("heads", [1, 3, 4, 8])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 111, 300])
def test_prefill_of_a_fresh_text(kit, name, heads, length):
    rules = kit.Rules(np.array([64, 0]), np.array([100, 64]), np.array([0, 64]))
    whole = kit.text([length], 2 * heads, 2, 8, length)
    out = backend.load(name).attend(**whole.new([0], [length]), seen=rules.seen(length), softmax=Softmax(SCALE))
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE)[0], atol=1e-10, rtol=0)


@each
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_attend_reads_only_what_the_plan_keeps(kit, name, data):
    """Ragged pasts, ragged new tokens (none too), every unwanted slot NaN."""
    sequences = data.draw(st.integers(1, 3))
    rules = data.draw(kit.rule_sets(groups=2))
    past = data.draw(st.lists(st.integers(0, 500), min_size=sequences, max_size=sequences))
    new = data.draw(st.lists(st.sampled_from([0, 1, 2, 63, 64, 65, 200]), min_size=sequences, max_size=sequences))
    total = np.add(past, new).tolist()
    whole = kit.text(total, 6, 2, 4, data.draw(st.integers(0, 99)))
    store = kit.store_of(whole, rules, past, spare=data.draw(st.integers(0, 2)))
    before = store.k.clone()
    out = backend.load(name).attend(
        **whole.new(past, total), seen=rules.seen(max(total)), store=store, softmax=Softmax(SCALE)
    )
    expected = torch.cat([x[p:] for x, p in zip(kit.oracle(whole, rules, SCALE), past, strict=True)])
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    assert torch.equal(store.k.nan_to_num(), before.nan_to_num())


@each
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_decode_attends_and_appends(kit, name, data):
    sequences = data.draw(st.integers(1, 3))
    rules = data.draw(kit.rule_sets(groups=2))
    past = data.draw(st.lists(st.integers(0, 500), min_size=sequences, max_size=sequences))
    new = data.draw(st.lists(st.sampled_from([1, 1, 1, 2, 7, 64]), min_size=sequences, max_size=sequences))
    total = np.add(past, new).tolist()
    whole = kit.text(total, 6, 2, 4, data.draw(st.integers(0, 99)))
    store = kit.store_of(whole, rules, past, spare=data.draw(st.integers(0, 2)), fill=GARBAGE[name])
    out = backend.load(name).decode(
        **whole.new(past, total), seen=rules.seen(max(total)), store=store, softmax=Softmax(SCALE)
    )
    expected = torch.cat([x[p:] for x, p in zip(kit.oracle(whole, rules, SCALE), past, strict=True)])
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)
    _holds(kit, store, whole, rules, total)


@each
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_append_of_any_length(kit, name, data):
    """Also chunks longer than the ring."""
    sequences = data.draw(st.integers(1, 3))
    rules = data.draw(kit.rule_sets(groups=2))
    past = data.draw(st.lists(st.integers(0, 300), min_size=sequences, max_size=sequences))
    new = data.draw(st.lists(st.sampled_from([0, 1, 64, 65, 300, 500]), min_size=sequences, max_size=sequences))
    total = np.add(past, new).tolist()
    whole = kit.text(total, 2, 2, 4, 0)
    store = kit.store_of(whole, rules, past, room=max(new))
    tokens = whole.new(past, total)
    del tokens["q"]
    backend.load(name).append(store, **tokens, seen=rules.seen(1))
    _holds(kit, store, whole, rules, total)


@each
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_text_fed_in_pieces(kit, name, dtype, data):
    """Growth, wrap, growth, beam reorder: any chunking gives what the whole text gives."""
    rules = data.draw(kit.rule_sets(groups=3))
    lengths = data.draw(st.lists(st.integers(1, 700), min_size=2, max_size=2))
    whole = kit.text(lengths, 3 * data.draw(st.sampled_from([1, 3])), 3, 4, 1)
    seen, run = rules.seen(max(lengths)), backend.load(name)
    done, pieces = [0, 0], [[], []]
    store = allocate(np.zeros((2, 3), np.int64), 4, dtype, "cpu")
    while done != lengths:
        most = data.draw(st.sampled_from([1, 20, 64, 64, 250]))
        end = [min(d + data.draw(st.integers(1, most)), n) for d, n in zip(done, lengths, strict=True)]
        need = capacities(rules.reach, end)
        if (need > store.capacity.numpy()).any():
            grown = need + 64 * data.draw(st.integers(0, 2))
            grown = allocate(np.maximum(grown, store.capacity.numpy()), 4, dtype, "cpu")
            grown.k.fill_(GARBAGE[name])
            grown.v.fill_(GARBAGE[name])
            move(store, grown, sink=seen.sink, lengths=torch.tensor(done))
            store = grown
        if data.draw(st.booleans()):
            store = select(store, torch.tensor([1, 0]))
            whole = kit.Text(whole.q[::-1], whole.k[::-1], whole.v[::-1])
            done, lengths, end, pieces = done[::-1], lengths[::-1], end[::-1], pieces[::-1]
        tokens = whole.new(done, end, dtype)
        small = all(0 < e - d <= 64 for d, e in zip(done, end, strict=True))
        out = (run.decode if small else run.attend)(**tokens, seen=seen, store=store, softmax=Softmax(SCALE))
        if not small:
            del tokens["q"]
            run.append(store, **tokens, seen=seen)
        for s, piece in enumerate(out.split(tokens["batch"].cu_seqlens.diff().tolist())):
            pieces[s].append(piece)
        done = end
    bound = 1e-10 if dtype == torch.float64 else kit.rounding(whole, SCALE, dtype)
    for got, expected in zip(pieces, kit.oracle(whole, rules, SCALE), strict=True):
        torch.testing.assert_close(torch.cat(got).double(), expected, atol=bound, rtol=0)


@each
@pytest.mark.parametrize("new", [1, 3])
def test_decode_heeds_the_tables_that_it_is_given(kit, name, new):
    """A store that lives on is read by longer tables, and by those of another rule; none has a column too many."""
    sink, beta = np.array([64, 64]), np.array([0, 0])
    kinds = [kit.Rules(sink, np.array(alpha), beta) for alpha in ((5000, 128), (128, 5000), (128, 128))]
    dense = kit.Rules(sink, np.array([5000, 5000]), beta)
    whole = kit.text([420, 400], 6, 2, 4, 0)
    store, run = kit.store_of(whole, dense, [250, 230], fill=GARBAGE[name], room=170), backend.load(name)
    expected, at = [kit.oracle(whole, rules, SCALE) for rules in kinds], [250, 230]
    same, dense_sink = {}, dense.seen(1).sink
    for i in range(30):
        rules = kinds[i // 3 % 3]
        end = [at[0] + new, at[1] + (new if i % 2 else 1)]
        blocks = (max(end) - 1) // 64 + 1
        buffer = torch.full((2, 16), 9999, dtype=torch.int32)
        buffer[:, :blocks] = rules.seen(64 * blocks - 1).first
        tokens = whole.new(at, end)
        offsets = tokens["batch"].cu_seqlens
        offsets = same.setdefault(tuple(offsets.tolist()), offsets)  # the very tensor, as a cache passes
        tokens["batch"] = tokens["batch"]._replace(cu_seqlens=offsets)
        seen = Visibility(same.setdefault((i // 3 % 3, blocks), buffer[:, :blocks]), dense_sink)
        out = run.decode(**tokens, seen=seen, store=store, softmax=Softmax(SCALE))
        rows = torch.cat([x[b:e] for x, b, e in zip(expected[i // 3 % 3], at, end, strict=True)])
        torch.testing.assert_close(out, rows, atol=1e-10, rtol=0)
        at = end


@each
def test_full_span_is_dense_attention(kit, name):
    whole = kit.text([200], 6, 2, 8, 3)
    rules = kit.Rules(np.array([64, 0]), np.array([0, 10**6]), np.array([256, 0]))
    out = backend.load(name).attend(**whole.new([0], [200]), seen=rules.seen(200), softmax=Softmax(SCALE))
    q, k, v = (x[0].transpose(0, 1) for x in (whole.q, whole.k, whole.v))
    dense = torch.nn.functional.scaled_dot_product_attention(
        q[None], k.repeat_interleave(3, 0)[None], v.repeat_interleave(3, 0)[None], is_causal=True, scale=SCALE
    )
    torch.testing.assert_close(out, dense[0].transpose(0, 1), atol=1e-12, rtol=0)


def test_reference_row_without_keys_is_zero(kit):
    """A table that grants a row nothing, not even itself."""
    whole = kit.text([3], 1, 1, 4, 0)
    nothing = Visibility(torch.tensor([[9]], dtype=torch.int32), torch.tensor([0], dtype=torch.int32))
    out = backend.load("reference").attend(**whole.new([0], [3]), seen=nothing, softmax=Softmax(SCALE))
    assert torch.equal(out, torch.zeros_like(out))


def _holds(kit, store, whole, rules, lengths):
    """Every key that a later row wants lies at its place."""
    expected = kit.store_of(whole, rules, lengths, room=0)
    bare = store.__class__(**vars(store) | {"k": torch.full_like(store.k, torch.nan), "v": store.v.clone()})
    move(expected, bare, sink=torch.from_numpy(rules.sink), lengths=torch.tensor(lengths))
    wanted = ~bare.k[:, 0].isnan()
    assert wanted.any() or not any(lengths)
    assert torch.equal(store.k[wanted], bare.k[wanted])
    assert torch.equal(store.v[wanted], bare.v[wanted])
