"""Device functions that the kernels share: where rows and keys lie, and one step of online softmax.

Row tiles. The rows of a group are (token, head) pairs, flat: row r of a sequence is its new token r // HEADS under the
group's query head r % HEADS, so that one tile of K and V serves all heads of the group and no row is padding.

Sizes known at run time are plain arguments, marked by `RUN_TIME` so that no kernel is compiled again for another value.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moa.kernels.registry import ANYWHERE
from moa.kernels.triton import SPEC
from moa.kernels.triton.tiles import WIDEST
from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK as _BLOCK

BLOCK = tl.constexpr(_BLOCK)
LOG2E = tl.constexpr(1.4426950408889634)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

RUN_TIME = ["blocks", "sequences", "groups", "tiles", "per_piece", "tokens", "moving", "most", "room", "lines",
            "width", "begin"]  # fmt: skip
"""Arguments of the kernels that must not be specialised."""


def require_supported(*tensors: Tensor) -> None:
    """Refuse [rows, heads, D] tensors that the kernels cannot load: by dtype, alignment or stride."""
    for x in tensors:
        if x.dtype not in DTYPES:
            raise Unsupported(
                f"back-end {SPEC.name} computes in bfloat16, float16 and float32, found {x.dtype}: "
                f"choose {ANYWHERE.name}"
            )
        if x.shape[-1] > WIDEST[x.dtype]:
            raise Unsupported(
                f"back-end {SPEC.name} takes head sizes up to {WIDEST[x.dtype]} in {x.dtype}, found {x.shape[-1]}: "
                f"choose {ANYWHERE.name}"
            )
        if not torch.compiler.is_compiling() and x.storage_offset() * x.element_size() % 16:  # a compiler cannot know
            raise Unsupported(
                f"back-end {SPEC.name} needs tensors that begin at a multiple of 16 bytes, found one that begins "
                f"{x.storage_offset()} elements of {x.element_size()} bytes into its storage: choose {ANYWHERE.name}"
            )
        odd = [step for step, size in zip(x.stride()[:2], x.shape[:2], strict=True) if size > 1 and step % 16]
        if x.shape[-1] % 16 or x.stride(-1) != 1 or odd:
            raise Unsupported(
                f"back-end {SPEC.name} needs head sizes and strides in multiples of 16 and a contiguous last "
                f"dimension, found head size {x.shape[-1]}, strides {x.stride()}: choose {ANYWHERE.name}"
            )


def on_device(x: Tensor) -> torch.cuda.device:
    """Make the device of `x` current: Triton launches kernels on the current device, wherever the tensors lie."""
    return torch.cuda.device(x.device.index if x.is_cuda else -1)


@triton.jit
def find_sequence(cu_seqlens, sequences, tile, HEADS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return the sequence that owns row tile `tile`, and the tile's index in it.

    Tiles of sequence s begin at cu_seqlens[s] * HEADS // BLOCK_M + s, which leaves each sequence room enough: the host
    needs only the token count for its grid, and no prefix sum is formed. Tiles past a sequence's rows are empty.
    """
    low, high = 0, sequences
    while high - low > 1:
        middle = (low + high) // 2
        mine = tl.load(cu_seqlens + middle) * HEADS // BLOCK_M + middle <= tile
        low = tl.where(mine, middle, low)
        high = tl.where(mine, high, middle)
    return low, tile - (tl.load(cu_seqlens + low) * HEADS // BLOCK_M + low)


@triton.jit
def rows_of_tile(tile, start, count, past, group, HEADS: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return of a tile's rows: which are among the `count` of a sequence, their tokens, heads and positions.

    Also the position of its first and last row. Rows beyond the last repeat it.
    """
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = row < count
    row = tl.minimum(row, count - 1)
    low = past + tile * BLOCK_M // HEADS
    high = past + (tl.minimum((tile + 1) * BLOCK_M, count) - 1) // HEADS
    return live, start + row // HEADS, group * HEADS + row % HEADS, past + row // HEADS, low, high


@triton.jit
def slot_of(block, base, sink_blocks, ring):
    """Return the first slot (int64) of the text's block `block` in a slab: the sink's blocks, then a ring."""
    place = tl.where(block < sink_blocks, block, sink_blocks + (block - sink_blocks) % ring)
    return base + place.to(tl.int64) * BLOCK


@triton.jit
def slab(base, capacity, sink, pair, group):
    """Return where a slab begins (slots), its sink blocks and its ring blocks (at least 1)."""
    sink_blocks = tl.load(sink + group) // BLOCK
    ring = tl.load(capacity + pair) // BLOCK - sink_blocks
    return tl.load(base + pair), sink_blocks, tl.maximum(ring, 1)


@triton.jit
def block_rows(new, stride, store, slot, block, fresh, past, start, D: tl.constexpr, HAS_STORE: tl.constexpr):
    """Return pointers to one block's keys or values: all of them new tokens if `fresh`, else all in the store."""
    rows = new + (start + block * BLOCK - past).to(tl.int64) * stride
    if HAS_STORE:
        # `require_supported` saw to these multiples (bytes, elements); the choice hides them from the compiler.
        rows = tl.multiple_of(tl.where(fresh, rows, store + slot * D), [16])
        stride = tl.multiple_of(tl.where(fresh, stride, D), [16])
    return rows + tl.arange(0, BLOCK) * stride


@triton.jit
def mixed_rows(new, stride, store, slot, block, past, start, D: tl.constexpr, HAS_STORE: tl.constexpr):
    """Return what `block_rows` does, for a block that the store holds before `past`, the new tokens from there."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    rows = new + (start + at - past).to(tl.int64) * stride
    if HAS_STORE:
        rows = tl.where(at < past, store + (slot + at % BLOCK) * D, rows)
        rows = tl.multiple_of(rows, [16])
    return rows


@triton.jit
def position_of(index, sink_blocks, begin):
    """Return where in the text a candidate lies; of one that the sink holds already, which slot it has."""
    return tl.where(index < sink_blocks * BLOCK, index, index + (begin - sink_blocks) * BLOCK)


@triton.jit
def candidate_rows(new, stride, store, at, past, start, slot0, sink_blocks, ring, D: tl.constexpr):
    """Return pointers to keys or values of candidates at positions `at`: new tokens, or slots of the store."""
    slot = slot_of(at // BLOCK, slot0, sink_blocks, ring) + at % BLOCK
    rows = tl.where(at >= past, new + (start + at - past).to(tl.int64) * stride, store + slot * D)
    return tl.multiple_of(rows, [16])


@triton.jit
def load_rows(rows, seen, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr):
    """Return a tile [rows, WIDTH] from row pointers; columns from D on, and rows not in `seen` if MASKED, are 0."""
    columns = tl.arange(0, WIDTH)
    at = rows[:, None] + columns[None, :]
    if MASKED:
        return tl.load(at, mask=seen[:, None] & (columns < D)[None, :], other=0.0)
    if D != WIDTH:
        return tl.load(at, mask=(columns < D)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """Return acc + a @ b in float32."""
    if INTERPRETED:  # the interpreter multiplies bfloat16's bit patterns as integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def in_base_2(scale, cap):
    """Return the factor on scores and the soft-cap with log2(e) in them, in float32; inductor passes float64."""
    log2e = tl.full((), LOG2E, tl.float32)
    scale = (log2e * scale).to(tl.float32)
    if cap is not None:
        cap = (log2e * cap).to(tl.float32)
    return scale, cap


@triton.jit
def capped(x, cap):
    """Return the scores cap * tanh(x / cap) of scaled scores `x`, and tanh(x / cap); `x` itself if `cap` is None."""
    scores, tanh = x, x
    if cap is not None:
        tanh = 1.0 - 2.0 / (1.0 + tl.exp(tl.minimum(x * (2.0 / cap), 80.0)))
        scores = tanh * cap
    return scores, tanh


@triton.jit
def uncapped(ds, tanh, cap):
    """Return the gradient at scaled scores whose `capped` ones have the gradient `ds`."""
    if cap is not None:
        ds = ds * (1.0 - tanh * tanh)
    return ds


@triton.jit
def start_rows(sink_logits, head, piece, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Return top, total and acc of `fold` before a row's first key; piece 0 holds the learned sinks, if there are."""
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if sink_logits is not None:
        top = tl.where(piece == 0, tl.load(sink_logits + head) * LOG2E, top)
        total = tl.where(piece == 0, 1.0, total)
    return top, total, tl.zeros([ROWS, WIDTH], tl.float32)


@triton.jit
def fold(q, k, v, seen, top, total, acc, scale, cap, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Return top, total and acc after a step of online softmax (arXiv 2205.14135, algorithm 1), all in base 2.

    Args:
        q, k, v: Tiles of queries [rows, WIDTH], keys and values [keys, WIDTH].
        seen: Which keys each row sees [rows, keys]; read if MASKED.
        top: Largest score so far per row, -inf before the first key.
        total: Sum of weights so far, relative to `top`.
        acc: Weighted sum of values so far [rows, WIDTH], relative to `top`.
        scale: Factor on q.k; it holds log2(e).
        cap: The soft-cap, which holds log2(e) too; or None.
    """
    scores, _ = capped(dot(q, tl.trans(k), None, PRECISION) * scale, cap)
    if MASKED:
        scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    zero = new_top
    if MASKED:
        zero = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that has seen no key yet
    weights = tl.exp2(scores - zero[:, None])
    fade = tl.exp2(top - zero)
    total = total * fade + tl.sum(weights, 1)
    acc = dot(weights.to(v.dtype), v, acc * fade[:, None], PRECISION)
    return new_top, total, acc
