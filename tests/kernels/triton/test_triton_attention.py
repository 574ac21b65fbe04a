"""Prefill, decode and append under the interpreter, against float64 attention over the whole text."""

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from piecewise import ALL, HALF, ONE_BLOCK, WINDOW, Rules, Text, agree, feed, texts
from torch import Tensor

from moa.kernels.softmax import Softmax
from moa.kernels.triton import operations as kernels
from moa.kernels.triton.pieces import pieces

pytestmark = pytest.mark.usefixtures("nothing_is_zero_by_luck")


@pytest.mark.parametrize("heads", [1, 3, 4, 8])
def test_prefill_of_a_ragged_batch(heads: int) -> None:
    lengths = [1, 63, 64, 65, 111]
    text = texts(lengths, [ONE_BLOCK, ALL], heads, 16, torch.float32)
    begin, end = torch.zeros(5, dtype=torch.int64), torch.tensor(lengths)
    (q, k, v), batch = text.new(begin, end)
    out = kernels.attend(q, k, v, seen=text.seen(), softmax=Softmax(0.25), batch=batch)
    agree(text, begin, end, out)


@pytest.mark.parametrize("stops", [[[210]], [[10], [210]]])
def test_prefill_of_a_window_far_from_its_sink(stops: list[list[int]]) -> None:
    """No block may be read as a sink's that is not. After 10 tokens some tiles' rows cross into the next block."""
    feed(texts([210], [(0, 64, 0), WINDOW], 1, 16, torch.float32), stops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prefill_then_a_long_chunk_over_wrapped_rings(dtype: torch.dtype) -> None:
    feed(texts([420, 111], [WINDOW, HALF, ALL], 1, 64, dtype), [[300, 20], [420, 111]], filled=True)


def test_one_long_chunk_beside_single_tokens() -> None:
    """On average they are few, but the long one's rows leave some of its own blocks behind."""
    ends = [301, *[192] * 7]
    feed(texts(ends, [ONE_BLOCK, WINDOW], 2, 16, torch.float32), [[191] * 8, ends], filled=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decode_over_wrapped_rings(dtype: torch.dtype) -> None:
    stops = [[318, 63, 1, 0], [319, 66, 2, 0], [335, 66, 3, 1]]
    feed(texts([335, 66, 3, 1], [ONE_BLOCK, WINDOW, ALL], 3, 64, dtype), stops, decode=True, filled=True)


def test_heads_of_512() -> None:
    feed(texts([80], [WINDOW], 3, 512, torch.bfloat16), [[70], [79], [80]], decode=True, filled=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_beyond_the_range_of_float16(kit: SimpleNamespace, dtype: torch.dtype) -> None:
    """Also once scaled; by prefill, a chunk, few tokens and one, against the reference in float64."""
    whole, rules, scale = kit.biased([150], 2, 1, 16, dtype), [WINDOW], 0.6
    text = Text(*([x.to(dtype) for x in xs] for xs in (whole.q, whole.k, whole.v)), rules)
    store, done, outs = text.store(torch.tensor([150])), 0, []
    for end in (70, 140, 149, 150):
        begin, stop = torch.tensor([done]), torch.tensor([end])
        (q, k, v), batch = text.new(begin, stop)
        call = {"seen": text.seen(), "store": store, "softmax": Softmax(scale), "batch": batch}
        if end - done > 16:
            outs.append(kernels.attend(q, k, v, **call))
            kernels.append(store, k, v, seen=text.seen(), batch=batch)
        else:
            outs.append(kernels.decode(q, k, v, **call))
        done = end
    exact = kit.oracle(whole, kit.Rules(*np.array(rules).T), scale)[0]
    bound = kit.half_rounding(whole, scale, dtype)
    torch.testing.assert_close(torch.cat(outs).double(), exact, rtol=0, atol=bound)


def test_a_long_sequence_is_split_into_pieces() -> None:
    text = texts([1000], [ALL, WINDOW], 4, 16, torch.float32)
    store = text.store(torch.tensor([1000]))
    assert pieces(store).most == 4
    feed(text, [[998], [999], [1000]], decode=True, filled=True)


@pytest.mark.parametrize(
    ("cap", "sunk", "dtype"), [(None, True, torch.float32), (1.5, False, torch.float32), (1.5, True, torch.bfloat16)]
)
def test_soft_caps_and_learned_sinks(cap: float | None, sunk: bool, dtype: torch.dtype) -> None:
    """Prefill and chunks over wrapped rings, and steps of slabs in one piece and in several; 3 heads per group."""
    logits = torch.tensor([-1.0, 0.0, 3.0, 5.0, -4.0, 1.5]) if sunk else None
    for lengths, stops, decode in (
        ([210, 65, 1], [[111, 63, 1], [210, 65, 1]], False), ([600, 66], [[597, 63], [600, 66]], True)
    ):  # fmt: skip
        text = texts(lengths, [WINDOW, ALL], 3, 16, dtype)
        text.cap, text.sink_logits = cap, logits
        feed(text, stops, decode=decode, filled=decode)
    assert pieces(text.store(torch.tensor(lengths))).most > 1


def test_more_pieces_than_are_joined_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("moa.kernels.triton.pieces")
    monkeypatch.setattr(module, "SMALLEST_PIECE", 1)
    monkeypatch.setattr(module, "processors", lambda _device: 100)
    text = texts([2200], [ALL], 1, 16, torch.float32)
    text.k[0][2048:] *= 8  # so that what comes last weighs most
    assert pieces(text.store(torch.tensor([2200]))).most == 35
    feed(text, [[2199], [2200]], decode=True, filled=True)


@pytest.mark.parametrize("before", [[0, 70], [0, 0]])
def test_a_few_tokens_of_sequences_without_slots(before: list[int]) -> None:
    text = texts([3, 73], [WINDOW, ALL], 2, 16, torch.float32)
    begin, end = torch.tensor(before), torch.tensor([n + 3 for n in before])
    store = text.store(begin)
    assert not store.capacity[0].any()
    (_, k, v), batch = text.new(torch.zeros_like(begin), begin)
    kernels.append(store, k, v, seen=text.seen(), batch=batch)
    (q, k, v), batch = text.new(begin, end)
    agree(text, begin, end, kernels.attend(q, k, v, seen=text.seen(), store=store, softmax=Softmax(0.25), batch=batch))


def test_offsets_beyond_32_bits(far_apart: Callable[[Tensor, int], Tensor]) -> None:
    text = texts([70], [ONE_BLOCK, WINDOW, ALL], 1, 16, torch.float16)
    for x in (text.q, text.k, text.v):
        x[0] = far_apart(x[0], 1)
    store = text.store(torch.tensor([70]))
    for begin, end in ((0, 69), (69, 70)):
        (q, k, v), batch = text.new(torch.tensor([begin]), torch.tensor([end]))
        q, k, v = (x[0][begin:end] for x in (text.q, text.k, text.v))  # `new` copies
        call = {"seen": text.seen(), "store": store, "softmax": Softmax(0.25), "batch": batch}
        out = kernels.attend(q, k, v, **call) if begin == 0 else kernels.decode(q, k, v, **call)
        agree(text, torch.tensor([begin]), torch.tensor([end]), out)
        if begin == 0:
            kernels.append(store, k, v, seen=text.seen(), batch=batch)


RULE = st.tuples(st.sampled_from([0, 64, 128]), st.integers(-100, 400), st.integers(0, 256))


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Text, list[list[int]], bool]:
    """Random rules, sequences and stops; after the first stop short steps, for decode, or chunks of any size."""
    rules = draw(st.lists(RULE, min_size=1, max_size=3))
    sequences, decode = draw(st.integers(1, 3)), draw(st.booleans())
    stops = [draw(st.lists(st.integers(0, 300), min_size=sequences, max_size=sequences))]
    for _ in range(draw(st.integers(1, 3))):
        stops.append([at + draw(st.integers(0, 16 if decode else 120)) for at in stops[-1]])
    heads = draw(st.sampled_from([1, 2, 3, 4]))
    return texts(stops[-1], rules, heads, 16, torch.float32), stops, decode


@settings(max_examples=3)
@given(conversations())
def test_conversations(case: tuple[Text, list[list[int]], bool]) -> None:
    feed(*case)


@pytest.mark.full
@settings(max_examples=100)
@given(conversations())
def test_many_conversations(case: tuple[Text, list[list[int]], bool]) -> None:
    feed(*case)


CALLS = {"prefill": 1000, "chunk": 90, "few": 16, "one": 1}  # at most so many last tokens of each text by one call


@pytest.mark.full
@pytest.mark.covering(
    length=[1, 63, 64, 65, 111, 1000],
    dim=[64, 80, 96, 128, 256],
    heads=[1, 3, 4, 8],
    call=list(CALLS),
    dtype=[torch.bfloat16, torch.float16, torch.float32],
    rules=[(ONE_BLOCK, ALL), (WINDOW, HALF)],
    beside=[(), (0, 7, 130)],
)
def test_matrix(
    length: int, dim: int, heads: int, call: str, dtype: torch.dtype, rules: Rules, beside: tuple[int, ...]
) -> None:
    ends = [length, *beside]
    before = [max(end - CALLS[call], 0) for end in ends]
    text = texts(ends, rules, heads, dim, dtype)
    feed(text, [before, ends] if any(before) else [ends], decode=call in ("few", "one"), filled=any(before))
