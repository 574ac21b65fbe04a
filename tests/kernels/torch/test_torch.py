"""What is special to the torch back-end: chunks of several blocks, half precision, fixed shapes."""

import numpy as np
import pytest
import torch

from moa.kernels.backend import load
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities
from moa.kernels.torch import decode
from moa.kernels.torch import operations as ours

SCALE = 0.3


@pytest.fixture
def rules(kit):
    """A constant window, a growing one, two alike, with sinks of 0, 1 and 2 blocks."""
    return kit.Rules(np.array([64, 0, 128, 128]), np.array([200, 0, 256, 256]), np.array([0, 100, 30, 30]))


@pytest.mark.parametrize("past", [0, 1, 300])
@pytest.mark.parametrize("threads", [1, 7, 64])
def test_chunk_size_follows_the_threads_and_changes_nothing(kit, rules, monkeypatch, threads, past):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    whole = kit.text([900], 4, 4, 4, 0)
    store = kit.store_of(whole, rules, [past])
    out = ours.attend(**whole.new([past], [900]), seen=rules.seen(900), store=store, softmax=Softmax(SCALE))
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE)[0][past:], atol=1e-10, rtol=0)


@pytest.mark.parametrize("past", [0, 300])
@pytest.mark.parametrize("threads", [7, 64])
def test_a_chunks_later_rows_do_not_see_what_their_sinks_have_dropped(kit, monkeypatch, threads, past):
    """Two groups are alike, but their sinks hold other keys; a chunk of one block is what all other tests look at."""
    rules, n = kit.Rules(np.array([64, 128, 128]), np.array([200, 256, 256]), np.array([0, 30, 30])), 900
    whole = kit.text([n], 6, 3, 4, 0)

    def run(threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        store = allocate(capacities(rules.reach, np.array([n])), 4, torch.float64, "cpu")
        sinks, out = Sinks(rules.sink, ["keydiff"] * 3, rules.first_at, 1, torch.device("cpu")), None
        for begin, end in ((0, past), (past, n)) if past else ((0, n),):
            out = attend(
                **whole.new([begin], [end]), seen=rules.seen(n), store=store, sinks=sinks, grown=lambda: store,
                softmax=Softmax(SCALE), backend=load("torch"),
            )  # fmt: skip
        return out

    torch.testing.assert_close(run(threads), run(1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_and_half_precision(kit, rules, dtype):
    whole = kit.text([500, 70], 12, 4, 16, 0)
    past, total = [490, 60], [500, 70]
    expected = torch.cat([x[p:] for x, p in zip(kit.oracle(whole, rules, SCALE), past, strict=True)])
    store = kit.store_of(whole, rules, past, fill=0, dtype=dtype)
    tokens, bound = whole.new(past, total, dtype), kit.rounding(whole, SCALE, dtype)
    for run in (ours.attend, ours.decode):
        out = run(**tokens, seen=rules.seen(500), store=store, softmax=Softmax(SCALE))
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=bound, rtol=0)


@pytest.mark.parametrize("past", [0, 300])
def test_attend_leaves_its_inputs_alone(kit, rules, past):
    """Also head-major ones, as models hand them over: the buffer that prefill overwrites is its own."""
    whole = kit.text([900], 4, 4, 4, 0)
    store = kit.store_of(whole, rules, [past], fill=0)
    tokens = whole.new([past], [900])
    tokens |= {n: tokens[n].transpose(0, 1).contiguous().transpose(0, 1) for n in "qkv"}
    given = [*(tokens[n] for n in "qkv"), *tokens["batch"][:2], store.k, store.v]
    before = [x.clone() for x in given]
    out = ours.attend(**tokens, seen=rules.seen(900), store=store, softmax=Softmax(SCALE))
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE)[0][past:], atol=1e-10, rtol=0)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


def test_large_slabs_are_shared_among_threads(kit, monkeypatch):
    """One and three slabs, cut into four pieces each, give what uncut ones give."""
    monkeypatch.setattr(decode, "LARGE", 1)
    monkeypatch.setattr(decode, "threads", lambda: 4)
    for groups in (1, 3):
        rules = kit.Rules(np.full(groups, 64), np.full(groups, 300), np.zeros(groups, np.int64))
        whole = kit.text([700], 3 * groups, groups, 4, 0)
        store = kit.store_of(whole, rules, [695], fill=1e3)
        out = ours.decode(**whole.new([695], [700]), seen=rules.seen(700), store=store, softmax=Softmax(SCALE))
        torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE)[0][695:], atol=1e-10, rtol=0)


def test_step_is_one_graph_of_fixed_shapes(kit, rules):
    """Traced whole at one length, the same graph is right at the next: nothing depends on values of tensors."""
    whole = kit.text([500, 300], 12, 4, 4, 0)
    store = kit.store_of(whole, rules, [460, 260], fill=0)
    seen, expected = rules.seen(600), kit.oracle(whole, rules, SCALE)
    torch._dynamo.reset()
    compiled = torch.compile(ours.decode, backend="eager", fullgraph=True, dynamic=False)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in range(60, 70):
            begin, end = [400 + n, 200 + n], [401 + n, 201 + n]
            out = compiled(**whole.new(begin, end), seen=seen, store=store, softmax=Softmax(SCALE))
            rows = torch.stack([x[e - 1] for x, e in zip(expected, end, strict=True)])
            torch.testing.assert_close(out, rows, atol=1e-10, rtol=0)


def test_steps_in_a_row(kit, rules):
    """Each goes on from the last: over the beginnings of blocks, back by 20 tokens, and where one text stands still."""
    whole = kit.text([340, 240], 12, 4, 4, 0)
    store = kit.store_of(whole, rules, [200, 160], fill=0, room=140)
    seen, expected = rules.seen(340), kit.oracle(whole, rules, SCALE)
    cu_seqlens = torch.arange(3, dtype=torch.int32)  # the very tensor, as a cache passes: else nothing is kept

    def decode(begin: list[int]) -> torch.Tensor:
        tokens = whole.new(begin, [b + 1 for b in begin])
        tokens["batch"] = tokens["batch"]._replace(cu_seqlens=cu_seqlens)
        return ours.decode(**tokens, seen=seen, store=store, softmax=Softmax(SCALE))

    for n in (*range(90), *range(70, 130)):
        begin = [200 + n, 160 + n // 2]
        out = decode(begin)
        rows = torch.stack([x[b] for x, b in zip(expected, begin, strict=True)])
        torch.testing.assert_close(out, rows, atol=1e-10, rtol=0)
        if n % 2:
            again = [200 + n + 1, 160 + n // 2 + 1]  # every length one more, as the kept bias expects
            out = decode(again)
            rows = torch.stack([x[b] for x, b in zip(expected, again, strict=True)])
            torch.testing.assert_close(out, rows, atol=1e-10, rtol=0)


def test_step_refuses_a_sequence_without_a_new_token(kit, rules):
    whole = kit.text([5, 5], 4, 4, 4, 0)
    store = kit.store_of(whole, rules, [3, 5], fill=0)
    with pytest.raises(RuntimeError, match="a new token of every sequence"):
        ours.decode(**whole.new([3, 5], [5, 5]), seen=rules.seen(5), store=store, softmax=Softmax(SCALE))
