"""Device functions of attention over pools (`pooled.py`): which blocks rows see, where they lie, a sweep over them."""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, fold, load_rows, start_rows


@triton.jit
def address_of(pools, group, like):
    """Return where the blocks of a KV head begin, as a pointer of the type of `like`."""
    return tl.multiple_of(tl.load(pools + group).to(like.dtype), 16)


@triton.jit
def table_of(tables, group, sequence, width):
    """Return where the block table of a sequence begins, for one KV head."""
    return tl.load(tables + group).to(tl.pointer_type(tl.int32)) + sequence * width.to(tl.int64)


@triton.jit
def rows_at(pool, block, place, step, D: tl.constexpr):
    """Return pointers to keys: those at `place` in blocks (int64) of the pool; values lie D further on."""
    return tl.multiple_of(pool + block * step + place * (2 * D), [16])


@triton.jit
def blocks_of_rows(first, sink_blocks, low, high):
    """List the blocks that rows at positions `low` to `high` see, in the order in which `sweep` takes them.

    Returns:
        The edges of the first and of the last row; how many blocks there are of the sink, then with those of the window
        that all rows see whole, then with those that only the first rows see, then with those of the rows themselves.
    """
    edge_low, edge_high = tl.load(first + low // BLOCK), tl.load(first + high // BLOCK)
    own = low // BLOCK
    sinks = tl.minimum(sink_blocks, own)
    whole = sinks + tl.maximum(own - edge_high, 0)
    partly = whole + tl.maximum(tl.minimum(edge_high, own) - edge_low, 0)
    return edge_low, edge_high, sinks, whole, partly, partly + high // BLOCK - own + 1


@triton.jit
def sweep(
    tile_q, position, low, high, pool, table, first, sink_blocks, begin, end, step, scale,
    ROWS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return top, total and acc of `fold` for a tile of rows, after blocks begin .. end of what they see."""
    edge_low, edge_high, sinks, whole, partly, _ = blocks_of_rows(first, sink_blocks, low, high)
    edge = tl.load(first + position // BLOCK)
    lane = tl.arange(0, BLOCK)
    top, total, acc = start_rows(None, position, 0, ROWS, WIDTH)
    for i in tl.range(begin, tl.minimum(end, whole)):
        block = tl.where(i < sinks, i, edge_high + i - sinks)
        rows = rows_at(pool, tl.load(table + block).to(tl.int64), lane, step, D)
        tile_k = load_rows(rows, lane, D, WIDTH, False)
        tile_v = load_rows(rows + D, lane, D, WIDTH, False)
        top, total, acc = fold(tile_q, tile_k, tile_v, lane, top, total, acc, scale, None, False, PRECISION)
    for i in tl.range(tl.maximum(begin, whole), end, num_stages=1):
        block = tl.where(i < partly, edge_low + i - whole, low // BLOCK + i - partly)
        at = block * BLOCK + lane
        rows = rows_at(pool, tl.load(table + block).to(tl.int64), lane, step, D)
        tile_k = load_rows(rows, at <= high, D, WIDTH, True)
        tile_v = load_rows(rows + D, at <= high, D, WIDTH, True)
        seen = (at[None, :] <= position[:, None]) & ((block < sink_blocks) | (block >= edge))[:, None]
        top, total, acc = fold(tile_q, tile_k, tile_v, seen, top, total, acc, scale, None, True, PRECISION)
    return top, total, acc
