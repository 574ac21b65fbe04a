"""Prefill, decode and append under the interpreter, against float64 attention over the whole text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moa.kernels import reference
from moa.kernels import triton as kernels
from moa.kernels.store import Store, allocate, capacities, slots
from moa.kernels.triton import tiles
from moa.kernels.triton.decode import pieces
from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK, first_block

Rules = Sequence[tuple[int, int, int]]  # sink, alpha, beta256 of each group
ONE_BLOCK, WINDOW, HALF, ALL = (0, 0, 0), (64, 128, 0), (64, -64, 128), (64, 0, 256)
NAN = float("nan")


@dataclass
class Text:
    """Whole texts of several sequences under a plan, fed to the kernels piece by piece."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    rules: Rules

    @property
    def sink(self) -> Tensor:
        return torch.tensor([rule[0] for rule in self.rules], dtype=torch.int32)

    def first(self, slack: int = 0) -> Tensor:
        blocks = max(len(x) for x in self.q) // BLOCK + 1 + slack
        sink, alpha, beta = np.array(self.rules).T[..., None]
        return torch.from_numpy(first_block(sink, alpha, beta, np.arange(blocks)).astype(np.int32))

    def new(self, begin: Tensor, end: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """q, k, v of tokens begin to end of each sequence, packed; and `starts`, `lengths`."""
        spans = list(zip(begin.tolist(), end.tolist(), strict=True))
        packed = [torch.cat([x[a:b] for x, (a, b) in zip(xs, spans, strict=True)]) for xs in (self.q, self.k, self.v)]
        starts = torch.nn.functional.pad((end - begin).cumsum(0), (1, 0)).to(torch.int32)
        return packed, {"starts": starts, "lengths": begin}

    def store(self, ends: Tensor) -> Store:
        capacity = capacities(*np.array(self.rules).T, ends.numpy())
        store = allocate(capacity, self.q[0].shape[-1], self.q[0].dtype, "cpu")
        store.k.fill_(NAN)
        store.v.fill_(NAN)
        return store

    def poison(self, store: Store, begin: Tensor) -> None:
        """NaN into every slot that rows from `begin` on do not want."""
        wanted = torch.zeros(len(store.k), dtype=torch.bool)
        first = self.first()
        for s, past in enumerate(begin.tolist()):
            for g, (sink, _, _) in enumerate(self.rules):
                at = torch.arange(past)
                at = at[(at < sink) | (at // BLOCK >= first[g, past // BLOCK])]
                wanted[slots(at, self.sink[g], store.base[s, g], store.capacity[s, g])] = True
        store.k[~wanted] = store.v[~wanted] = NAN


def texts(lengths: Sequence[int], rules: Rules, heads: int, dim: int, dtype: torch.dtype) -> Text:
    g = torch.Generator().manual_seed(len(lengths) + heads * dim)
    groups = len(rules)

    def draw(n: int, count: int) -> Tensor:
        return torch.randn(n, count, dim, generator=g).to(dtype)

    return Text(
        [draw(n, groups * heads) for n in lengths], [draw(n, groups) for n in lengths],
        [draw(n, groups) for n in lengths],
        rules,
    )  # fmt: skip


def eager(q: Tensor, k: Tensor, v: Tensor, first: Tensor, sink: Tensor) -> Tensor:
    """What plain PyTorch gives in the tensors' own precision, softmax in float32."""
    n, groups, _ = k.shape
    at = torch.arange(n)
    block = at // BLOCK
    kept = (at < sink[:, None])[:, None] | (block >= first[:, block][..., None])  # [kv_heads, rows, keys]
    seen = (kept & (at <= at[:, None])).repeat_interleave(q.shape[1] // groups, 0)
    k, v = (x.repeat_interleave(q.shape[1] // groups, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, torch.promote_types(q.dtype, torch.float32))
    return torch.einsum("hqk,khd->qhd", weights.to(q.dtype), v)


def agree(text: Text, begin: Tensor, end: Tensor, out: Tensor) -> None:
    """`out`, packed, is within eager attention's own error plus two roundings of the largest value."""
    row = 0
    for s, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        if a == b:
            continue
        q, k, v = text.q[s][:b], text.k[s][:b], text.v[s][:b]
        exact = reference.attend(
            q.double(), k.double(), v.double(), first=text.first(), sink=text.sink, scale=q.shape[-1] ** -0.5,
            starts=torch.tensor([0, b]), lengths=torch.zeros(1, dtype=torch.int64),
        )  # fmt: skip
        error = (eager(q, k, v, text.first(), text.sink) - exact).abs().max()
        allowed = error + 2 * torch.finfo(q.dtype).eps * v.double().abs().max()
        found = (out[row : row + b - a] - exact[a:]).abs().max()
        assert found <= allowed, f"sequence {s}: error {found:.2e}, allowed {allowed:.2e}"
        row += b - a
    assert row == len(out)


def feed(text: Text, stops: Sequence[Sequence[int]], decode: bool = False, filled: bool = False) -> None:
    """Feed the texts up to each of `stops` in turn, through one store, checking outputs and every written slot.

    With `decode`, by `step` after the first stop; with `filled`, the first stop only fills the store.
    """
    ends = [torch.tensor(stop) for stop in stops]
    store, twin = text.store(ends[-1]), text.store(ends[-1])
    begin = torch.zeros_like(ends[0])
    for end in ends:
        (q, k, v), where = text.new(begin, end)
        text.poison(store, begin)
        call = {"first": text.first(slack=3), "sink": text.sink, "scale": q.shape[-1] ** -0.5, **where}
        twin.k.copy_(store.k)
        twin.v.copy_(store.v)
        if decode and begin.any():
            agree(text, begin, end, kernels.step(q, k, v, store=store, **call))
        else:
            if begin.any() or not filled:
                agree(text, begin, end, kernels.attend(q, k, v, store=store, **call))
            kernels.append(store, k, v, sink=text.sink, **where)
        reference.append(twin, k, v, sink=text.sink, **where)
        for mine, theirs in ((store.k, twin.k), (store.v, twin.v)):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        begin = end


@pytest.fixture(autouse=True)
def nothing_is_zero_by_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    plain: Callable[..., Tensor] = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: plain(*a, **k).fill_(NAN))


@pytest.mark.parametrize("heads", [1, 3, 4, 8])
def test_prefill_of_a_ragged_batch(heads: int) -> None:
    lengths = [1, 63, 64, 65, 111]
    text = texts(lengths, [ONE_BLOCK, ALL], heads, 16, torch.float32)
    begin, end = torch.zeros(5, dtype=torch.int64), torch.tensor(lengths)
    (q, k, v), where = text.new(begin, end)
    out = kernels.attend(q, k, v, first=text.first(), sink=text.sink, scale=0.25, **where)
    agree(text, begin, end, out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prefill_then_a_long_chunk_over_wrapped_rings(dtype: torch.dtype) -> None:
    feed(texts([420, 111], [WINDOW, HALF, ALL], 1, 64, dtype), [[300, 20], [420, 111]], filled=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decode_over_wrapped_rings(dtype: torch.dtype) -> None:
    stops = [[318, 63, 1, 0], [319, 66, 2, 0], [335, 66, 3, 1]]
    feed(texts([335, 66, 3, 1], [ONE_BLOCK, WINDOW, ALL], 3, 64, dtype), stops, decode=True, filled=True)


def test_a_long_sequence_is_split_into_pieces() -> None:
    text = texts([1000], [ALL, WINDOW], 4, 16, torch.float32)
    store = text.store(torch.tensor([1000]))
    assert pieces(store, 1).most == 4
    feed(text, [[998], [999], [1000]], decode=True, filled=True)


@pytest.mark.parametrize("rows", [16, 32, 64])
def test_the_same_input_gives_the_same_bits(rows: int) -> None:
    text = texts([200], [WINDOW, ALL], 2, 16, torch.float16)
    begin, end = torch.tensor([200 - rows]), torch.tensor([200])
    store = text.store(end)
    (_, k, v), where = text.new(torch.zeros_like(end), begin)
    kernels.append(store, k, v, sink=text.sink, **where)
    (q, k, v), where = text.new(begin, end)
    call = {"first": text.first(), "sink": text.sink, "scale": 0.25, "store": store, **where}
    assert torch.equal(kernels.attend(q, k, v, **call), kernels.attend(q, k, v, **call))


def test_strided_inputs() -> None:
    text = texts([130], [WINDOW, ALL], 2, 16, torch.float32)
    begin, end = torch.zeros(1, dtype=torch.int64), torch.tensor([130])
    (q, k, v), where = text.new(begin, end)
    q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    assert not q.is_contiguous()
    agree(text, begin, end, kernels.attend(q, k, v, first=text.first(), sink=text.sink, scale=0.25, **where))


def test_nothing_new() -> None:
    text = texts([0], [ALL], 1, 16, torch.float32)
    (q, k, v), where = text.new(torch.tensor([0]), torch.tensor([0]))
    assert kernels.attend(q, k, v, first=text.first(), sink=text.sink, scale=1.0, **where).shape == (0, 1, 16)


@pytest.mark.parametrize("dim", [8, 72])
def test_head_sizes_that_do_not_align_are_refused(dim: int) -> None:
    text = texts([10], [ALL], 1, dim, torch.float32)
    (q, k, v), where = text.new(torch.tensor([0]), torch.tensor([10]))
    with pytest.raises(Unsupported, match=f"head size {dim}"):
        kernels.attend(q, k, v, first=text.first(), sink=text.sink, scale=1.0, **where)


def test_every_device_has_tiles() -> None:
    for target in ("sm_80", "sm_90", "sm_100", "gfx942", "cpu"):
        for dtype in (torch.float32, torch.bfloat16):
            for dim in (64, 80, 96, 128, 256):
                assert tiles.prefill_tiles(dim, dtype, target).width >= dim
                assert tiles.decode_tiles(dim, dtype, 200, target).block_m >= 16


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


SHAPES = [(64, 1), (64, 3), (64, 4), (64, 8), (80, 1), (96, 3), (128, 4), (256, 1)]


@pytest.mark.full
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("dim", "heads"), SHAPES)
def test_lengths_groups_head_sizes_and_types(dim: int, heads: int, dtype: torch.dtype) -> None:
    lengths = [1, 63, 64, 65, 111, 1000]
    text = texts([n + 2 for n in lengths], [ONE_BLOCK, HALF, ALL], heads, dim, dtype)
    feed(text, [lengths, [n + 1 for n in lengths], [n + 2 for n in lengths]], decode=True)  # prefill, then two steps
