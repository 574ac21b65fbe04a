"""Soft-caps and learned sinks: every back-end and every form of a call against a dense masked softmax."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from moa.kernels.backend import load
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.numba import operations as numba
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities
from moa.kernels.torch import decode as torch_decode
from moa.kernels.torch import operations as ours
from moa.kernels.torch import tiled

SCALE, HEADS, GROUPS, SIZE = 0.3, 6, 2, 16
GARBAGE = {"reference": float("nan"), "torch": 1e3, "numba": float("nan")}  # torch's decode reads whole slabs
LOGITS = torch.tensor([-1.0, 0.0, 3.0, 5.0, -4.0, 1.5], dtype=torch.float64)
KINDS = {"sinks": (None, LOGITS), "cap": (1.5, None), "both": (1.5, LOGITS)}
each = pytest.mark.parametrize("name", list(GARBAGE))
kinds = pytest.mark.parametrize("kind", KINDS)
STOPS = [[0, 0], [150, 65], [151, 66], [152, 67], [159, 68], [223, 132], [290, 132], [420, 299], [421, 300]]


@pytest.fixture
def rules(kit):
    """A window that grows beside a sink of two blocks, and a constant one."""
    return kit.Rules(np.array([128, 64]), np.array([0, 150]), np.array([120, 0]))


def softmax_of(kind: str, dtype: torch.dtype) -> Softmax:
    cap, logits = KINDS[kind]
    wide = torch.promote_types(dtype, torch.float32)
    return Softmax(SCALE, cap, None if logits is None else logits.to(wide))


def fed(kit, name: str, whole, rules, softmax: Softmax, dtype: torch.dtype, stops=STOPS) -> list[Tensor]:
    """Each text's attention, its tokens up to each of `stops` given in one call."""
    backend, outs = load(name), [[], []]
    for past, end in pairwise(stops):
        store = kit.store_of(whole, rules, past, fill=GARBAGE[name], dtype=dtype) if any(past) else None
        tokens = whole.new(past, end, dtype)
        few = store is not None and all(0 < e - p <= 64 for p, e in zip(past, end, strict=True))
        run = backend.decode if few else backend.attend
        out = run(**tokens, seen=rules.seen(max(end)), store=store, softmax=softmax)
        assert out.dtype == dtype
        for piece, found in zip(outs, out.split(tokens["batch"].cu_seqlens.diff().tolist()), strict=True):
            piece.append(found)
    return [torch.cat(pieces) for pieces in outs]


@each
@kinds
def test_a_text_fed_in_pieces(kit, name, kind, rules):
    """One pass, steps of one and more tokens, ragged chunks over dropped keys, which are NaN; GQA."""
    whole = kit.text(STOPS[-1], HEADS, GROUPS, SIZE, 0)
    expected = kit.oracle(whole, rules, SCALE, *KINDS[kind])
    for found, want, plain in zip(
        fed(kit, name, whole, rules, softmax_of(kind, torch.float64), torch.float64), expected,
        kit.oracle(whole, rules, SCALE), strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(found, want, atol=1e-10, rtol=0)
        assert (want - plain).abs().max() > 0.1


@each
@kinds
@pytest.mark.parametrize("length", [1, 63, 64, 65, 111])
def test_prefill_of_a_fresh_text(kit, name, kind, rules, length):
    whole = kit.text([length], HEADS, GROUPS, SIZE, length)
    call = {"seen": rules.seen(length), "softmax": softmax_of(kind, torch.float64)}
    out = load(name).attend(**whole.new([0], [length]), **call)
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE, *KINDS[kind])[0], atol=1e-10, rtol=0)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_and_half_precision(kit, name, rules, dtype):
    """Inputs are numbers of the type, so what is lost is scores' and weights' rounding."""
    kind = "both"
    whole = kit.text(STOPS[-1], HEADS, GROUPS, SIZE, 0)
    for n in "qkv":
        setattr(whole, n, [x.to(dtype).double() for x in getattr(whole, n)])
    bound = kit.half_rounding(whole, SCALE, dtype, KINDS[kind][0] or 0.0)
    found = fed(kit, name, whole, rules, softmax_of(kind, dtype), dtype)
    for text, want in zip(found, kit.oracle(whole, rules, SCALE, *KINDS[kind]), strict=True):
        torch.testing.assert_close(text.double(), want, atol=bound, rtol=0)


@each
@kinds
def test_sinks_of_other_keys(kit, name, kind, rules):
    """One pass and chunks give what steps give, whose softmax is that of `Backend.decode`; in one of two groups."""
    whole, softmax, n = kit.text([420], HEADS, GROUPS, SIZE, 0), softmax_of(kind, torch.float64), 420

    def run(ends: list[int]) -> Tensor:
        store = allocate(capacities(rules.reach, np.array([n])), SIZE, torch.float64, "cpu")
        sinks, outs = Sinks(rules.sink, ["keydiff", "first"], rules.first_at, 1, "cpu"), []
        for past, end in zip([0, *ends], ends, strict=False):
            outs.append(
                attend(
                    **whole.new([past], [end]), seen=rules.seen(n), store=store, sinks=sinks, grown=lambda: store,
                    softmax=softmax, backend=load(name),
                )
            )  # fmt: skip
        return torch.cat(outs)

    steps = run([60, *range(61, n + 1)])
    torch.testing.assert_close(run([n]), steps, atol=1e-10, rtol=0)
    torch.testing.assert_close(run([130, 131, 333, n]), steps, atol=1e-10, rtol=0)
    dense = kit.oracle(whole, rules, SCALE, *KINDS[kind])[0]  # of the group whose sink holds the first keys
    torch.testing.assert_close(steps[:, HEADS // 2 :], dense[:, HEADS // 2 :], atol=1e-10, rtol=0)


@kinds
def test_large_slabs_are_shared_among_threads(kit, kind, monkeypatch):
    monkeypatch.setattr(torch_decode, "LARGE", 1)
    monkeypatch.setattr(torch_decode, "threads", lambda: 4)
    rules = kit.Rules(np.full(GROUPS + 1, 64), np.full(GROUPS + 1, 300), np.zeros(GROUPS + 1, np.int64))
    whole, logits = kit.text([700], 9, 3, 4, 0), torch.randn(9, dtype=torch.float64)
    cap, sinks = KINDS[kind][0], None if kind == "cap" else logits
    store = kit.store_of(whole, rules, [695], fill=1e3)
    out = ours.decode(**whole.new([695], [700]), seen=rules.seen(700), store=store, softmax=Softmax(SCALE, cap, sinks))
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE, cap, sinks)[0][695:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("shares", [1, 3, 7])
def test_numba_counts_a_learned_sink_once_however_a_slab_is_shared(kit, rules, shares, monkeypatch):
    monkeypatch.setattr(numba, "_shares", lambda: shares)
    whole = kit.text([420], HEADS, GROUPS, SIZE, 0)
    store = kit.store_of(whole, rules, [417])
    call = {"seen": rules.seen(420), "store": store, "softmax": softmax_of("both", torch.float64)}
    out = numba.decode(**whole.new([417], [420]), **call)
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE, *KINDS["both"])[0][417:], atol=1e-10, rtol=0)


@kinds
def test_a_step_is_one_graph(kit, kind, rules):
    whole, seen = kit.text([300, 200], HEADS, GROUPS, SIZE, 0), rules.seen(300)
    store = kit.store_of(whole, rules, [290, 190], fill=0)
    torch._dynamo.reset()
    compiled = torch.compile(ours.decode, backend="eager", fullgraph=True, dynamic=False)
    for n in range(3):
        begin = [290 + n, 190 + n]
        out = compiled(
            **whole.new(begin, [b + 1 for b in begin]), seen=seen, store=store, softmax=softmax_of(kind, torch.float64)
        )
        rows = [x[b] for x, b in zip(kit.oracle(whole, rules, SCALE, *KINDS[kind]), begin, strict=True)]
        torch.testing.assert_close(out, torch.stack(rows), atol=1e-10, rtol=0)


@kinds
def test_the_size_of_tiles_changes_nothing(kit, kind, monkeypatch):
    """Some rows of one group, and all rows of some groups, at once; both groups see the same."""
    rules = kit.Rules(np.array([64, 64]), np.array([150, 150]), np.array([0, 0]))
    whole = kit.text([300], HEADS, GROUPS, SIZE, 0)
    expected = kit.oracle(whole, rules, SCALE, *KINDS[kind])[0]
    call = {"seen": rules.seen(300), "softmax": softmax_of(kind, torch.float64)}
    for scores in (1, 1 << 14, 1 << 18):
        monkeypatch.setattr(tiled, "SCORES", scores)
        torch.testing.assert_close(ours.attend(**whole.new([0], [300]), **call), expected, atol=1e-10, rtol=0)
