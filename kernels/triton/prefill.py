"""Prefill: causal block-sparse attention of many new tokens over the store's past and themselves, in one launch.

Algorithm. A program owns BLOCK_M rows of one (sequence, group): consecutive new tokens under all query heads of the
group, so each K/V tile is read once per group. It walks the 64-key blocks its rows see in two loops:

1. blocks that every row sees whole (the sink's and the window's interior): no mask, no bounds;
2. the few others: where the window's edge moves within the tile, and the diagonal. Their mask is
   key <= position and (key < sink or block >= first[position // 64]).

Where sinks of a group hold other keys than the first (`Held`), a loop before these takes them from the table of each
query block that the tile has rows of. In the two loops, only rows before any key has moved see the sink's blocks then.

Blocks outside the plan are never touched. A block is read from the slab where it is past, from the new tokens where it
is new; the one block that may be both is left to the second loop.

Balance. Programs start longest first without a sort: groups by reach, the one with the lowest `first` ahead, and tiles
from the end of the text backwards, since a rule's span never falls with position.

Work. 4 * D * (visible keys) flops per row and query head, rounded up to blocks at the edges. Bytes: q and out once;
K and V once per tile, from L2 where tiles of one group run together.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.kernels.triton.common import (
    BLOCK,
    RUN_TIME,
    block_rows,
    candidate_rows,
    find_sequence,
    fold,
    in_base_2,
    load_rows,
    mixed_rows,
    on_device,
    position_of,
    rows_of_tile,
    slab,
    slot_of,
    start_rows,
)
from moa.kernels.triton.tiles import Tiles, prefill_tiles


class Held(NamedTuple):
    """What the sinks of some groups hold, for each query block (`moa.kernels.triton.selection`).

    Attributes:
        table: int32 [sequences * groups, lines, most]: candidates, by blocks that have left since the call began.
        places: int32 [kv_heads]: which of these groups each is, -1 for the others.
        folded: int32 [sequences, kv_heads]: the first block besides the sink as the call began.
        moving: How many groups these are.
        most: Slots of the largest of their sinks.
        lines: Lines of a table.
    """

    table: Tensor
    places: Tensor
    folded: Tensor
    moving: int
    most: int
    lines: int


NOTHING_HELD = (None,) * 6


@triton.jit
def by_reach(first, blocks, groups, rank, GROUPS: tl.constexpr):
    """Return the group whose reach at the end of the table is the `rank`-th longest; ties go by index."""
    group = tl.arange(0, GROUPS)
    edge = tl.load(first + group * blocks + blocks - 1, mask=group < groups, other=2147483647)
    ahead = (edge[None, :] < edge[:, None]) | ((edge[None, :] == edge[:, None]) & (group[None, :] < group[:, None]))
    return tl.sum(tl.where(tl.sum(ahead.to(tl.int32), 1) == rank, group, 0), 0)


@triton.jit(do_not_specialize=RUN_TIME)
def prefill_kernel(
    q, k, v, out, lse, k_store, v_store, first, sink, base, capacity, cu_seqlens, pasts, scale, cap,
    sink_logits, table, places, folded, moving, most, lines, blocks, sequences, groups, tiles,
    q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_STORE: tl.constexpr, WITH_LSE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the rows of one tile (see the module)."""
    program = tl.program_id(0)
    group = by_reach(first, blocks, groups, program // tiles, GROUPS)
    sequence, tile = find_sequence(cu_seqlens, sequences, tiles - 1 - program % tiles, HEADS, BLOCK_M)
    start = tl.load(cu_seqlens + sequence)
    count = (tl.load(cu_seqlens + sequence + 1) - start) * HEADS
    if tile * BLOCK_M >= count:
        return
    past = tl.load(pasts + sequence).to(tl.int32)
    live, token, head, position, low, high = rows_of_tile(tile, start, count, past, group, HEADS, BLOCK_M)

    first += group * blocks
    edge = tl.load(first + position // BLOCK)
    edge_low, edge_high = tl.load(first + low // BLOCK), tl.load(first + high // BLOCK)
    if HAS_STORE:
        slot0, sink_blocks, ring = slab(base, capacity, sink, sequence * groups + group, group)
    else:
        slot0, sink_blocks, ring = tl.full((), 0, tl.int64), tl.load(sink + group) // BLOCK, 1
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    lane = tl.arange(0, BLOCK)
    scale, cap = in_base_2(scale, cap)

    tile_q = load_rows(q + token.to(tl.int64) * q_token + head.to(tl.int64) * q_head, live, D, WIDTH, MASKED=True)
    top, total, acc = start_rows(sink_logits, head, 0, BLOCK_M, WIDTH)

    diagonal = low // BLOCK
    sinks = tl.minimum(sink_blocks, diagonal)
    if table is not None:
        tl.static_assert(BLOCK_M <= 2 * BLOCK)
        place = tl.load(places + group)
        changed = (place >= 0) & (edge_high > sink_blocks)
        begin = tl.load(folded + sequence * groups + group)
        table += (sequence * moving + place).to(tl.int64) * lines * most
        for row_block in range(diagonal, tl.where(changed, high // BLOCK + 1, diagonal)):
            row_edge = tl.load(first + row_block)
            seen = (position // BLOCK == row_block)[:, None]
            for i in tl.range(0, tl.where(row_edge > sink_blocks, sink_blocks, sinks), num_stages=1):
                index = tl.load(table + (row_edge - begin) * most + i * BLOCK + lane)
                at = position_of(index, sink_blocks, begin)
                rows_k = candidate_rows(k, k_token, k_store, at, past, start, slot0, sink_blocks, ring, D)
                rows_v = candidate_rows(v, v_token, v_store, at, past, start, slot0, sink_blocks, ring, D)
                tile_k = load_rows(rows_k, live, D, WIDTH, False)
                tile_v = load_rows(rows_v, live, D, WIDTH, False)
                top, total, acc = fold(tile_q, tile_k, tile_v, seen, top, total, acc, scale, cap, True, PRECISION)
        sinks = tl.where(changed, 0, sinks)
    whole = sinks + tl.maximum(diagonal - edge_high, 0)
    mixed, mixed_block = 0, past // BLOCK  # the block that is past and new at once goes to the second loop
    if HAS_STORE:
        split = (past % BLOCK != 0) & (mixed_block < diagonal)
        mixed = (split & ((mixed_block < sinks) | (mixed_block >= edge_high))).to(tl.int32)
    for i in tl.range(0, whole - mixed):
        block = tl.where(i < sinks, i, edge_high + i - sinks)
        if HAS_STORE:
            i += tl.where(block >= mixed_block, mixed, 0)
            block = tl.where(i < sinks, i, edge_high + i - sinks)
        slot = slot_of(block, slot0, sink_blocks, ring)
        fresh = block >= mixed_block
        rows_k = block_rows(k, k_token, k_store, slot, block, fresh, past, start, D, HAS_STORE)
        rows_v = block_rows(v, v_token, v_store, slot, block, fresh, past, start, D, HAS_STORE)
        tile_k = load_rows(rows_k, live, D, WIDTH, False)
        tile_v = load_rows(rows_v, live, D, WIDTH, False)
        top, total, acc = fold(tile_q, tile_k, tile_v, live, top, total, acc, scale, cap, False, PRECISION)

    edges = mixed + tl.maximum(tl.minimum(edge_high, diagonal) - edge_low, 0)
    for i in tl.range(0, edges + high // BLOCK - diagonal + 1, num_stages=1):
        block = tl.where(i < edges, edge_low + i - mixed, diagonal + i - edges)
        block = tl.where(i < mixed, mixed_block, block)
        at = block * BLOCK + lane
        slot = slot_of(block, slot0, sink_blocks, ring)
        rows_k = mixed_rows(k, k_token, k_store, slot, block, past, start, D, HAS_STORE)
        rows_v = mixed_rows(v, v_token, v_store, slot, block, past, start, D, HAS_STORE)
        tile_k = load_rows(rows_k, at <= high, D, WIDTH, True)
        tile_v = load_rows(rows_v, at <= high, D, WIDTH, True)
        # a tile spans three blocks, and rows whose sink changed are two blocks or more behind it: none is in it here
        seen = (at[None, :] <= position[:, None]) & ((block < sink_blocks) | (block >= edge))[:, None]
        top, total, acc = fold(tile_q, tile_k, tile_v, seen, top, total, acc, scale, cap, True, PRECISION)

    flat = token.to(tl.int64) * (groups * HEADS) + head
    column = tl.arange(0, WIDTH)
    result = (acc / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + flat[:, None] * D + column[None, :], result, mask=live[:, None] & (column < D)[None, :])
    if WITH_LSE:
        tl.store(lse + flat, top + tl.log2(total), mask=live)


def launch_prefill(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, batch: Packed, seen: Visibility, store: Store | None = None,
    softmax: Softmax, lse: Tensor | None = None, held: Held | None = None, tiles: Tiles | None = None,
) -> None:  # fmt: skip
    """Fill `out` [tokens, query_heads, D] (contiguous).

    Args:
        q, k, v, batch, seen, store, softmax: See `moa.kernels.call.Attend`; the last dimension is contiguous.
        out: Written whole.
        lse: float32 [tokens, query_heads], filled with log2 of each row's softmax denominator if given.
        held: What sinks of other keys than the first hold; it needs a store.
        tiles: Tile shape, the device's own by default.
    """
    tokens, heads, dim = q.shape
    groups = k.shape[1]
    sequences, (first, sink) = len(batch.cu_seqlens) - 1, seen
    past = (store.k, store.v, store.base, store.capacity) if store else (k, v, batch.past, sink)
    with on_device(q):
        shape = tiles or prefill_tiles(dim, q.dtype)
        count = tokens * (heads // groups) // shape.block_m + sequences
        prefill_kernel[(count * groups,)](
            q, k, v, out, out if lse is None else lse, past[0], past[1], first, sink, past[2], past[3],
            batch.cu_seqlens, batch.past, *softmax, *(held or NOTHING_HELD),
            first.shape[1], sequences, groups, count, *q.stride()[:2],
            *k.stride()[:2], *v.stride()[:2], HEADS=heads // groups, GROUPS=triton.next_power_of_2(groups), D=dim,
            WIDTH=shape.width, BLOCK_M=shape.block_m, HAS_STORE=store is not None, WITH_LSE=lse is not None,
            PRECISION=shape.precision, num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
