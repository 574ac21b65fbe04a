"""Attention over pools under the interpreter, against its definition in plain PyTorch; that against the reference."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
from piecewise import ALL, HALF, NAN, ONE_BLOCK, WINDOW, Rules, Text, texts
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from moa.kernels import pooled, reference
from moa.kernels.call import Packed
from moa.kernels.pooled import Pool
from moa.kernels.triton.pooled import Layer, Places, launch
from moa.plans.span import BLOCK, Reach, linear

pytestmark = pytest.mark.usefixtures("nothing_is_zero_by_luck")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LONGEST = 1024
MODULE = import_module("moa.kernels.triton.pooled")


class Served:
    """Texts whose blocks lie in pools as a server's do: scattered, differently for every head, between foreign ones."""

    def __init__(self, text: Text, seed: int = 0) -> None:
        self.text, self.rules = text, Reach(text.rules, [linear] * len(text.rules))
        most, random = LONGEST // BLOCK + 2, torch.Generator().manual_seed(seed)
        self.blocks, self.tables = [], []
        for _ in text.rules:
            owned = torch.randperm(len(text.q) * most + 5, generator=random)[: len(text.q) * most]
            room = torch.full((len(text.q) * most + 5, 3, BLOCK, 2 * text.q[0].shape[-1]), NAN, dtype=text.q[0].dtype)
            self.blocks.append(room[:, 1])  # two other heads have theirs between
            self.tables.append(owned.view(len(text.q), most).to(torch.int32))
        self.layer = Layer.of(self.rules, LONGEST, "cpu")

    def pools(self, past: Sequence[int], new: Sequence[int], padding: int = 0) -> list[Pool]:
        """Pools for new tokens after `past`, and some that belong to nobody; what no row sees is NaN."""
        found = []
        for g, (blocks, table) in enumerate(zip(self.blocks, self.tables, strict=True)):
            named, slots = table.clone(), []
            for s, (begin, count) in enumerate(zip(past, new, strict=True)):
                at = torch.arange(begin, begin + count)
                slots.append(table[s, at // BLOCK].long() * BLOCK + at % BLOCK)
                sink, first = int(self.rules.sink[g]) // BLOCK, int(self.rules.first(begin // BLOCK)[g])
                lost = [i for i in range(begin // BLOCK) if sink <= i < first]
                blocks[table[s, lost].long()] = NAN
                named[s, lost] = table[s, lost[:1]]
            found.append(Pool(blocks, named, pad(torch.cat(slots), (0, padding), value=-1)))
        return found

    def packed(self, past: Sequence[int], new: Sequence[int], padding: int = 0) -> list[Tensor]:
        """q, k and v of new tokens, views of one tensor as a model's are; rows of padding are NaN."""
        parts = [
            torch.cat([x[b : b + n] for x, b, n in zip(xs, past, new, strict=True)])
            for xs in (self.text.q, self.text.k, self.text.v)
        ]
        heads = [x.shape[1] for x in parts]
        whole = pad(torch.cat(parts, 1), (0, 0, 0, 0, 0, padding), value=NAN)
        return list(whole.split(heads, 1))

    def fill(self, length: Sequence[int]) -> None:
        """Write the first tokens of each text to the pools, by their definition."""
        none = [0] * len(length)
        _, k, v = self.packed(none, length)
        pooled.append(k, v, self.pools(none, length))

    def feed(self, past: Sequence[int], new: Sequence[int], padding: int = 0) -> Tensor:
        """Attend to new tokens, which end up in the pools, and compare everything; return the attention."""
        pools = self.pools(past, new, padding)
        before = [pool.blocks.clone() for pool in pools]
        q, k, v = self.packed(past, new, padding)
        ends = torch.tensor([0, *new]).cumsum(0).to(torch.int32)
        lengths = torch.tensor([b + n if n else 7 for b, n in zip(past, new, strict=True)], dtype=torch.int32)
        out = torch.empty(q.shape, dtype=q.dtype)
        launch(
            q, k, v, out, layer=self.layer, places=Places.of(pools), cu_seqlens=ends, lengths=lengths,
            longest=max(new), scale=self.text.softmax.scale,
        )  # fmt: skip
        wanted = [pool._replace(blocks=was) for pool, was in zip(pools, before, strict=True)]
        pooled.append(k, v, wanted)
        for mine, theirs in zip(pools, wanted, strict=True):
            torch.testing.assert_close(mine.blocks, theirs.blocks, rtol=0, atol=0, equal_nan=True)
        call = {"cu_seqlens": ends, "lengths": lengths, "seen": self.layer.seen, "scale": self.text.softmax.scale}
        plain = pooled.attend(q, wanted, **call)
        exact = pooled.attend(q.double(), [x._replace(blocks=x.blocks.double()) for x in wanted], **call)
        largest = max(x.double().abs().max() for x in self.text.v)
        real = slice(sum(new))
        allowed = (plain.double() - exact)[real].abs().max() + 2 * torch.finfo(q.dtype).eps * largest
        assert (out.double() - exact)[real].abs().max() <= allowed
        assert out[sum(new) :].isnan().all()
        return out[real]


def served(lengths: Sequence[int], rules: Rules, heads: int, dim: int, dtype: torch.dtype) -> Served:
    return Served(texts(lengths, rules, heads, dim, dtype))


def whole(text: Text, s: int) -> Tensor:
    """What the reference says about a whole text, in float64."""
    n = len(text.q[s])
    batch = Packed(torch.tensor([0, n]), torch.zeros(1, dtype=torch.int64), n)
    q, k, v = (x[s].double() for x in (text.q, text.k, text.v))
    return reference.attend(q, k, v, seen=text.seen(), softmax=text.softmax, batch=batch)


def test_the_definition_is_the_references() -> None:
    text = texts([300, 65], [ONE_BLOCK, WINDOW, HALF, ALL], 3, 16, torch.float64)
    here, new = Served(text), [300, 65]
    pools, (q, k, v) = here.pools([0, 0], new), here.packed([0, 0], new)
    pooled.append(k, v, pools)
    call = {"cu_seqlens": torch.tensor([0, 300, 365]), "lengths": torch.tensor(new), "seen": here.layer.seen}
    found = pooled.attend(q, pools, **call, scale=text.softmax.scale)
    torch.testing.assert_close(found, torch.cat([whole(text, s) for s in range(2)]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "heads"), [(64, 3), (128, 1), (80, 4)])
def test_a_step_of_a_batch(dtype: torch.dtype, dim: int, heads: int) -> None:
    """Texts of different lengths, of which two have no new token, as those that pad a graph's batch."""
    lengths = [1, 64, 65, 333, 390, 130, 3]
    here = served(lengths, [ONE_BLOCK, ALL, WINDOW, HALF], heads, dim, dtype)
    here.fill([0, 63, 64, 332, 389, 130, 3])
    here.feed([0, 63, 64, 332, 389, 130, 3], [1, 1, 1, 1, 1, 0, 0], padding=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "heads"), [(64, 4), (128, 3), (16, 1)])
def test_chunks_beside_steps(dtype: torch.dtype, dim: int, heads: int) -> None:
    here = served([400, 321, 130, 64, 70], [WINDOW, ONE_BLOCK, ALL], heads, dim, dtype)
    here.fill([300, 320, 129, 0, 64])
    here.feed([300, 320, 129, 0, 64], [100, 1, 1, 64, 6], padding=3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_whole_span_is_dense_attention(dtype: torch.dtype) -> None:
    """Of a rule that drops nothing, and of a window that is longer than the text."""
    here = served([200], [ALL, (64, 512, 0)], 2, 64, dtype)
    out = torch.cat([here.feed([0], [199]), here.feed([199], [1])])
    q, k, v = (x[0].double().transpose(0, 1)[None] for x in (here.text.q, here.text.k, here.text.v))
    dense = scaled_dot_product_attention(q, k, v, is_causal=True, scale=here.text.softmax.scale, enable_gqa=True)
    exact = dense[0].transpose(0, 1)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    plain = scaled_dot_product_attention(q, k, v, is_causal=True, scale=here.text.softmax.scale, enable_gqa=True)
    allowed = (plain - dense).abs().max() + 2 * torch.finfo(dtype).eps * v.double().abs().max()
    assert (out - exact).abs().max() <= allowed


def test_a_conversation_is_one_text() -> None:
    """Chunks and steps, cut anywhere, against the reference's attention over the whole text."""
    here = served([430, 200], [WINDOW, HALF, (128, 192, 64)], 2, 32, torch.float32)
    done, outs = [0, 0], [[], []]
    for new in ([100, 1], [1, 63], [1, 1], [27, 70], [1, 0], [170, 1], [1, 1], [129, 63]):
        out = here.feed(done, new).split(new)
        for s in range(2):
            outs[s].append(out[s])
            done[s] += new[s]
    assert done == [430, 200]
    for s in range(2):
        torch.testing.assert_close(torch.cat(outs[s]).double(), whole(here.text, s), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("count", "pieces"), [(100, [16, 2, 3, 8]), (1, [1, 1, 1, 1])])
def test_long_heads_have_more_pieces(monkeypatch: pytest.MonkeyPatch, count: int, pieces: list[int]) -> None:
    """At any length; where all have one, no join is needed."""
    monkeypatch.setattr(MODULE, "processors", lambda _device: count)
    monkeypatch.setattr(MODULE, "SMALLEST_PIECE", 1)
    here = served([1000, 700], [ALL, ONE_BLOCK, WINDOW, HALF], 2, 16, torch.float32)
    assert MODULE.pieces_of_heads(here.layer, 1 if count > 1 else 50, here.layer.capacity.device)[1] == pieces
    here.fill([999, 699])
    here.feed([999, 699], [1, 1])


def test_more_query_heads_than_a_tile_has_rows() -> None:
    here = served([21], [WINDOW], 33, 16, torch.float32)
    here.feed([0], [20])
    here.feed([20], [1])


def test_offsets_beyond_int32(far_apart: Callable[[Tensor, int], Tensor]) -> None:
    """Blocks and tokens that lie 2**30 elements apart."""
    here = served([65], [ALL], 1, 16, torch.float16)
    here.fill([64])
    pool = here.pools([64], [1])[0]
    q, k, v = here.packed([64], [1])
    found = torch.empty(q.shape, dtype=q.dtype)
    call = {"cu_seqlens": torch.tensor([0, 1], dtype=torch.int32), "lengths": torch.tensor([65], dtype=torch.int32)}
    call |= {"layer": here.layer, "longest": 1, "scale": 0.25}
    launch(q, k, v, found, places=Places.of([pool]), **call)
    used = pool.table[0, :2].long()
    far = far_apart(torch.cat([pool.blocks[used], pool.blocks[:1]]).flatten(1)[:, None], 0)
    assert far.stride(0) == 1 << 30
    blocks = far.as_strided((3, BLOCK, 32), (1 << 30, 32, 1), far.storage_offset())
    slots = torch.tensor([BLOCK])
    moved = Pool(blocks, torch.tensor([[0, 1]], dtype=torch.int32), slots)
    again = torch.empty(q.shape, dtype=q.dtype)
    launch(q, k, v, again, places=Places.of([moved]), **call)
    assert torch.equal(found, again)


@pytest.mark.parametrize("new", [[1, 1, 1], [1, 40, 1]])
def test_launches(monkeypatch: pytest.MonkeyPatch, new: list[int]) -> None:
    """What is launched does not depend on the values of any tensor: there are none here."""
    found: list[Any] = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **__: found.append((self.name, grid))

    names = ["append", "prefill", "decode", "join"]
    for name in names:
        monkeypatch.setattr(MODULE, f"pooled_{name}_kernel", Kernel(name))
    layer = Layer.of(Reach([ALL, WINDOW], [linear] * 2), 8192, "meta")
    q, k, v = (torch.empty(sum(new), heads, 64, dtype=torch.bfloat16, device="meta") for heads in (8, 2, 2))
    places = Places(torch.empty(3, 2, dtype=torch.int64, device="meta"), 128 * BLOCK, 128, len(q))
    cu_seqlens, lengths = (torch.empty(n, dtype=torch.int32, device="meta") for n in (4, 3))
    launch(
        q, k, v, torch.empty_like(q), layer=layer, places=places, cu_seqlens=cu_seqlens, lengths=lengths,
        longest=max(new), scale=0.125,
    )  # fmt: skip
    assert [name for name, _ in found] == ([name for name in names if name != "prefill" or max(new) > 1])
    assert all(size > 0 for _, grid in found for size in grid)


def test_pools_that_lie_differently_are_refused() -> None:
    here = served([10], [ALL, ALL], 1, 16, torch.float32)
    pools = here.pools([0], [10])
    with pytest.raises(ValueError, match="pools of a layer must lie alike"):
        Places.of([pools[0], pools[1]._replace(slots=pools[1].slots[:5])])
    with pytest.raises(ValueError, match="each block in one piece"):
        Places.of([x._replace(blocks=x.blocks.transpose(1, 2)) for x in pools])
