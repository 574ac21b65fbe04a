"""Prefill, decode and append under the interpreter, against float64 attention over the whole text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from moa.kernels import reference
from moa.kernels.store import Store, allocate, capacities, slots
from moa.kernels.triton import operations as kernels
from moa.kernels.triton import tiles
from moa.kernels.triton.common import on_device, require_supported
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
        """q, k, v of tokens begin to end of each sequence, packed; and `cu_seqlens`, `lengths`."""
        spans = list(zip(begin.tolist(), end.tolist(), strict=True))
        packed = [torch.cat([x[a:b] for x, (a, b) in zip(xs, spans, strict=True)]) for xs in (self.q, self.k, self.v)]
        cu_seqlens = torch.nn.functional.pad((end - begin).cumsum(0), (1, 0)).to(torch.int32)
        return packed, {"cu_seqlens": cu_seqlens, "lengths": begin}

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
            cu_seqlens=torch.tensor([0, b]), lengths=torch.zeros(1, dtype=torch.int64),
        )  # fmt: skip
        error = (eager(q, k, v, text.first(), text.sink) - exact).abs().max()
        allowed = error + 2 * torch.finfo(q.dtype).eps * v.double().abs().max()
        found = (out[row : row + b - a] - exact[a:]).abs().max()
        assert found <= allowed, f"sequence {s}: error {found:.2e}, allowed {allowed:.2e}"
        row += b - a
    assert row == len(out)


def feed(text: Text, stops: Sequence[Sequence[int]], decode: bool = False, filled: bool = False) -> None:
    """Feed the texts up to each of `stops` in turn, through one store, checking outputs and every written slot.

    With `decode`, by `step` after the first stop; with `filled`, the first stop only fills the store. As a growing
    cache, it gives `attend` no store before the first tokens; with `decode`, as a fixed one, an empty store.
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
                past = store if begin.any() or decode else None
                agree(text, begin, end, kernels.attend(q, k, v, store=past, **call))
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


@pytest.mark.parametrize("stops", [[[210]], [[10], [210]]])
def test_prefill_of_a_window_far_from_its_sink(stops: list[list[int]]) -> None:
    """No block may be read as a sink's that is not. After 10 tokens some tiles' rows cross into the next block."""
    feed(texts([210], [(0, 64, 0), WINDOW], 1, 16, torch.float32), stops)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_prefill_then_a_long_chunk_over_wrapped_rings(dtype: torch.dtype) -> None:
    feed(texts([420, 111], [WINDOW, HALF, ALL], 1, 64, dtype), [[300, 20], [420, 111]], filled=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decode_over_wrapped_rings(dtype: torch.dtype) -> None:
    stops = [[318, 63, 1, 0], [319, 66, 2, 0], [335, 66, 3, 1]]
    feed(texts([335, 66, 3, 1], [ONE_BLOCK, WINDOW, ALL], 3, 64, dtype), stops, decode=True, filled=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_beyond_the_range_of_float16(kit: SimpleNamespace, dtype: torch.dtype) -> None:
    """Also once scaled; by prefill, a chunk, few tokens and one, against the reference in float64."""
    whole, rules, scale = kit.biased([150], 2, 1, 16, dtype), [WINDOW], 0.6
    text = Text(*([x.to(dtype) for x in xs] for xs in (whole.q, whole.k, whole.v)), rules)
    store, done, outs = text.store(torch.tensor([150])), 0, []
    for end in (70, 140, 149, 150):
        begin, stop = torch.tensor([done]), torch.tensor([end])
        (q, k, v), where = text.new(begin, stop)
        call = {"first": text.first(), "sink": text.sink, "store": store, "scale": scale, **where}
        if end - done > 16:
            outs.append(kernels.attend(q, k, v, **call))
            kernels.append(store, k, v, sink=text.sink, **where)
        else:
            outs.append(kernels.step(q, k, v, **call))
        done = end
    exact = kit.oracle(whole, kit.Rules(*np.array(rules).T), scale)[0]
    bound = kit.half_rounding(whole, scale, dtype)
    torch.testing.assert_close(torch.cat(outs).double(), exact, rtol=0, atol=bound)


def test_a_long_sequence_is_split_into_pieces() -> None:
    text = texts([1000], [ALL, WINDOW], 4, 16, torch.float32)
    store = text.store(torch.tensor([1000]))
    assert pieces(store, 1).most == 4
    feed(text, [[998], [999], [1000]], decode=True, filled=True)


def test_more_pieces_than_are_joined_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("moa.kernels.triton.decode")
    monkeypatch.setattr(module, "SMALLEST_PIECE", 1)
    monkeypatch.setattr(module, "_processors", lambda _device: 100)
    text = texts([2200], [ALL], 1, 16, torch.float32)
    text.k[0][2048:] *= 8  # so that what comes last weighs most
    assert pieces(text.store(torch.tensor([2200])), 100).most == 35
    feed(text, [[2199], [2200]], decode=True, filled=True)


def test_no_kernel_leaves_the_order_of_its_sums_to_chance() -> None:
    """So the same input gives the same bits. The interpreter runs one program after another: results cannot show it."""
    files = list(Path(kernels.__file__).parent.glob("*.py"))
    assert len(files) > 5
    assert not [file.name for file in files if "atomic_" in file.read_text()]


@pytest.mark.parametrize("before", [[0, 70], [0, 0]])
def test_a_few_tokens_of_sequences_without_slots(before: list[int]) -> None:
    text = texts([3, 73], [WINDOW, ALL], 2, 16, torch.float32)
    begin, end = torch.tensor(before), torch.tensor([n + 3 for n in before])
    store = text.store(begin)
    assert not store.capacity[0].any()
    (_, k, v), where = text.new(torch.zeros_like(begin), begin)
    kernels.append(store, k, v, sink=text.sink, **where)
    (q, k, v), where = text.new(begin, end)
    agree(
        text, begin, end, kernels.attend(q, k, v, first=text.first(), sink=text.sink, store=store, scale=0.25, **where)
    )


def test_offsets_beyond_32_bits(far_apart: Callable[[Tensor, int], Tensor]) -> None:
    text = texts([70], [ONE_BLOCK, WINDOW, ALL], 1, 16, torch.float16)
    for x in (text.q, text.k, text.v):
        x[0] = far_apart(x[0], 1)
    store = text.store(torch.tensor([70]))
    for begin, end in ((0, 69), (69, 70)):
        (q, k, v), where = text.new(torch.tensor([begin]), torch.tensor([end]))
        q, k, v = (x[0][begin:end] for x in (text.q, text.k, text.v))  # `new` copies
        call = {"first": text.first(), "sink": text.sink, "store": store, "scale": 0.25, **where}
        out = kernels.attend(q, k, v, **call) if begin == 0 else kernels.step(q, k, v, **call)
        agree(text, torch.tensor([begin]), torch.tensor([end]), out)
        if begin == 0:
            kernels.append(store, k, v, sink=text.sink, **where)


def test_whole_pieces_start_first() -> None:
    store = allocate(np.array([[64, 640], [320, 64]]), 16, torch.float32, "cpu")
    items, size, most = pieces(store, 1)
    left = store.capacity.flatten()[items[:, 0].long()] // BLOCK - size * items[:, 1]
    assert (size, most, left.clamp(max=size).tolist()) == (4, 3, [4, 4, 2, 4, 1, 1, 1])


def test_a_call_reads_no_value_and_runs_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on `meta` have no values: what a launch needs is known without them, so that nothing waits for any."""
    launched, current = [], [-2]

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **__: launched.append((self.name, grid, current[-1]))

    monkeypatch.setattr(torch.cuda, "device", Device)
    for name, kernel in (("prefill", "prefill"), ("append", "append"), ("decode", "decode"), ("decode", "join")):
        monkeypatch.setattr(import_module(f"moa.kernels.triton.{name}"), f"{kernel}_kernel", Kernel(kernel))
    store = allocate(np.array([[1024, 128]]), 16, torch.float32, "meta")
    for rows in (100, 1):
        q, k, v = (torch.empty(rows, heads, 16, device="meta") for heads in (4, 2, 2))
        call = {
            "sink": torch.empty(2, dtype=torch.int32, device="meta"),
            "cu_seqlens": torch.empty(2, dtype=torch.int32, device="meta"),
            "lengths": torch.empty(1, dtype=torch.int64, device="meta"),
        }
        first = torch.empty(2, 16, dtype=torch.int32, device="meta")
        kernels.step(q, k, v, first=first, store=store, scale=0.25, **call)
    assert launched == [
        ("prefill", (2 * (200 // 32 + 1),), -1), ("append", (2, 2), -1),
        ("decode", (5,), -1), ("join", (1, 4, 1), -1),
    ]  # fmt: skip
    assert on_device(SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))).index == 1


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


def test_a_start_off_the_16_byte_grid_is_refused() -> None:
    text = texts([10], [ALL], 1, 16, torch.float32)
    (q, k, v), where = text.new(torch.tensor([0]), torch.tensor([10]))
    off = torch.zeros(k.numel() + 1)[1:].view(k.shape)
    with pytest.raises(Unsupported, match="1 elements of 4 bytes into its storage"):
        kernels.attend(q, off, v, first=text.first(), sink=text.sink, scale=1.0, **where)


def test_what_surrounds_a_launch_breaks_no_compiled_graph() -> None:
    def surroundings(x: Tensor) -> Tensor:
        require_supported(x)
        with on_device(x):
            return x + 1

    compiled = torch.compile(surroundings, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2, 2, 16)), torch.ones(2, 2, 16))


def test_float64_is_refused() -> None:
    text = texts([10], [ALL], 1, 16, torch.float64)
    (q, k, v), where = text.new(torch.tensor([0]), torch.tensor([10]))
    with pytest.raises(Unsupported, match=r"found torch\.float64"):
        kernels.attend(q, k, v, first=text.first(), sink=text.sink, scale=1.0, **where)


def test_append_refuses_what_attention_refuses() -> None:
    text = texts([10], [ALL], 1, 16, torch.float32)
    (_, k, v), where = text.new(torch.tensor([0]), torch.tensor([10]))
    store = text.store(torch.tensor([10]))
    with pytest.raises(Unsupported, match="contiguous last dimension"):
        kernels.append(store, k.transpose(0, 2).contiguous().transpose(0, 2), v, sink=text.sink, **where)


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


CALLS = {"prefill": 1000, "chunk": 90, "few": 16, "step": 1}  # at most so many last tokens of each text by one call


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
    feed(text, [before, ends] if any(before) else [ends], decode=call in ("few", "step"), filled=any(before))
