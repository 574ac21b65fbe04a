"""Decode: a few new tokens per sequence over ragged slabs, split along the keys; writes the new keys as well.

Algorithm. The blocks that a (sequence, group) keeps, the sink's and then the window's, are cut into pieces of equal
size. One flat list holds the pieces of all slabs, so a long head and many short ones fill the device alike. The list
follows the slabs' capacities, which the host knows and which stay fixed between reallocations; a piece beyond the
blocks in use ends at once. Nothing here waits for the device, and the grid is the same at every step: a CUDA graph can
hold it. The rows of a tile are the new tokens under all query heads of the group. A piece leaves its normalised sum and
log2 of its denominator; a second small kernel joins the pieces of each row.

The first piece of a slab writes the new keys and values into it. That races with nothing: new keys are read from the
caller's tensors, and thanks to the spare block a write of up to 64 tokens lands only on slots no row reads.

Work. Bytes: kept K and V once, plus 2 * 4 * D per row and piece; 4 * D flops per key and row, far below a device's
balance, so kept bytes over bandwidth is the bound.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.kernels.triton.append import append_rows
from moa.kernels.triton.budget import COARSE, FINE, budget, pages_read, reads_all, tiles_of_piece
from moa.kernels.triton.common import (
    BLOCK,
    RUN_TIME,
    fold,
    in_base_2,
    load_rows,
    mixed_rows,
    on_device,
    slab,
    slot_of,
    start_rows,
)
from moa.kernels.triton.pieces import pieces
from moa.kernels.triton.tiles import Tiles, decode_tiles


@triton.jit
def blocks_seen(first, sink_blocks, past, count):
    """Count the blocks that `count` rows from `past` on see, in order: the past's sink, its window, the new blocks.

    A block that is past and new at once is one of the new. Returns the window's first block and how many blocks there
    are of the first kind, of the first two, and of all.
    """
    edge = tl.load(first + past // BLOCK)
    whole = past // BLOCK
    sinks = tl.minimum(sink_blocks, whole)
    old = sinks + tl.maximum(whole - edge, 0)
    return edge, sinks, old, old + (past + count - 1) // BLOCK - whole + 1


@triton.jit
def pieces_of(capacity, pair, per_piece):
    """Return how many pieces of a slab the list holds."""
    return tl.maximum(tl.cdiv(tl.load(capacity + pair) // BLOCK, per_piece), 1)


@triton.jit
def write_rows(
    out, lse, token, head, live, top, total, acc, groups, HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Write what rows have after the last key of a piece, where they are `live`."""
    flat, column = token.to(tl.int64) * (groups * HEADS) + head, tl.arange(0, WIDTH)
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]  # 0: the row sees no key of this piece
    tl.store(
        out + flat[:, None] * D + column[None, :], result.to(out.dtype.element_ty),
        mask=live[:, None] & (column < D)[None, :],
    )  # fmt: skip
    if SPLIT:
        tl.store(lse + flat, top + tl.log2(total), mask=live)


@triton.jit(do_not_specialize=RUN_TIME)
def decode_kernel(
    q, k, v, out, lse, k_store, v_store, items, first, sink, share, given, base, capacity, cu_seqlens, pasts, scale,
    cap, sink_logits, blocks, groups, per_piece, tokens, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    APPEND: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one piece (see the module). `out` is [tokens, heads, D], or with SPLIT [pieces, tokens, heads, D].

    Slabs in which a row chooses pages are left out; `share` and `given` are None where all rows read what they see.
    """
    pair = tl.load(items + 2 * tl.program_id(0))
    piece = tl.load(items + 2 * tl.program_id(0) + 1)
    sequence, group = pair // groups, pair % groups
    start = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - start
    if count == 0:
        return
    past = tl.load(pasts + sequence).to(tl.int32)
    slot0, sink_blocks, ring = slab(base, capacity, sink, pair, group)
    first += group * blocks
    if share is not None:  # noqa: SIM102  (a compile-time and a run-time condition)
        if not reads_all(first, tl.load(share + group), tl.load(given + group), sink_blocks, past, count, D):
            return
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    if APPEND:  # noqa: SIM102  (a compile-time and a run-time condition)
        if piece == 0:
            for offset in range(0, count, 16):
                append_rows(
                    k, v, k_store, v_store, k_token, v_token, start, count, past, offset, slot0, sink_blocks, ring,
                    D, WIDTH, 16,
                )  # fmt: skip
    if SPLIT:
        out += piece.to(tl.int64) * tokens * groups * HEADS * D
        lse += piece.to(tl.int64) * tokens * groups * HEADS
    edge, sinks, old, used = blocks_seen(first, sink_blocks, past, count)
    begin = piece * per_piece
    end = tl.minimum(begin + per_piece, used)
    if piece == pieces_of(capacity, pair, per_piece) - 1:
        end = used  # new tokens can reach past the capacity's pieces
    if begin >= end:
        return
    lane = tl.arange(0, BLOCK)
    high = past + count - 1
    scale, cap = in_base_2(scale, cap)
    for tile in range(0, count * HEADS, BLOCK_M):
        row = tile + tl.arange(0, BLOCK_M)
        live = row < count * HEADS
        row = tl.minimum(row, count * HEADS - 1)
        token, head = start + row // HEADS, group * HEADS + row % HEADS
        position = past + row // HEADS
        row_edge = tl.load(first + position // BLOCK)
        tile_q = load_rows(q + token.to(tl.int64) * q_token + head.to(tl.int64) * q_head, live, D, WIDTH, True)
        top, total, acc = start_rows(sink_logits, head, piece, BLOCK_M, WIDTH)
        for i in tl.range(begin, tl.minimum(end, old)):
            block = tl.where(i < sinks, i, edge + i - sinks)
            slot = slot_of(block, slot0, sink_blocks, ring) * D
            tile_k = load_rows(k_store + slot + lane * D, live, D, WIDTH, False)
            tile_v = load_rows(v_store + slot + lane * D, live, D, WIDTH, False)
            seen = ((block < sink_blocks) | (block >= row_edge))[:, None]
            top, total, acc = fold(tile_q, tile_k, tile_v, seen, top, total, acc, scale, cap, True, PRECISION)
        for i in tl.range(tl.maximum(begin, old), end, num_stages=1):
            block = past // BLOCK + i - old
            at = block * BLOCK + lane
            slot = slot_of(block, slot0, sink_blocks, ring)
            rows_k = mixed_rows(k, k_token, k_store, slot, block, past, start, D, True)
            rows_v = mixed_rows(v, v_token, v_store, slot, block, past, start, D, True)
            tile_k = load_rows(rows_k, at <= high, D, WIDTH, True)
            tile_v = load_rows(rows_v, at <= high, D, WIDTH, True)
            seen = at[None, :] <= position[:, None]  # 64 tokens lie in two blocks; every row keeps the one before
            top, total, acc = fold(tile_q, tile_k, tile_v, seen, top, total, acc, scale, cap, True, PRECISION)
        write_rows(out, lse, token, head, live, top, total, acc, groups, HEADS, D, WIDTH, SPLIT)


@triton.jit
def joined(parts, lse, row, rows, pieces, column, D: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr):
    """Return the weighted mean of a row's pieces, COLUMNS columns of it; each piece has so many `rows`."""
    top = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    acc = tl.zeros([COLUMNS], tl.float32)
    for i in range(0, pieces, AT_ONCE):
        piece = i + tl.arange(0, AT_ONCE)
        there = piece < pieces
        at = piece.to(tl.int64) * rows + row
        size = tl.load(lse + at, mask=there, other=float("-inf"))
        part = tl.load(
            parts + at[:, None] * D + column[None, :], mask=there[:, None] & (column < D)[None, :], other=0.0
        )
        new_top = tl.maximum(top, tl.max(size, 0))
        zero = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(size - zero)
        fade = tl.exp2(top - zero)
        total = total * fade + tl.sum(weight, 0)
        acc = acc * fade + tl.sum(part * weight[:, None], 0)
        top = new_top
    return acc / total


@triton.jit(do_not_specialize=RUN_TIME)
def join_kernel(
    parts, lse, out, first, sink, share, given, capacity, cu_seqlens, pasts, blocks, groups, per_piece, tokens,
    HEADS: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write the weighted mean of the pieces, for COLUMNS columns of one sequence and query head.

    `share` and `given` are None where all rows read what they see.
    """
    sequence, query_head = tl.program_id(0), tl.program_id(1)
    group = query_head // HEADS
    start = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - start
    if count == 0:
        return
    past = tl.load(pasts + sequence).to(tl.int32)
    first += group * blocks
    sink_blocks = tl.load(sink + group) // BLOCK
    _, _, _, used = blocks_seen(first, sink_blocks, past, count)
    most = pieces_of(capacity, sequence * groups + group, per_piece)
    pieces = tl.minimum(tl.cdiv(used, per_piece), most)
    if share is not None:
        asked, floor = tl.load(share + group), tl.load(given + group)
        whole = reads_all(first, asked, floor, sink_blocks, past, count, D)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    heads = groups * HEADS
    for t in range(count):
        flat = (start + t).to(tl.int64) * heads + query_head
        if share is not None:  # noqa: SIM102  (a compile-time and a run-time condition)
            if not whole:
                shift = tl.maximum(tl.load(first + (past + t) // BLOCK) - sink_blocks, 0)
                counts = budget(asked, floor, shift, (past + t).to(tl.int64) + 1, D)
                _, _, _, pages, _ = pages_read(floor // COARSE, counts)
                pieces = tl.cdiv(tl.cdiv(pages, BLOCK // FINE), tiles_of_piece(pages, most))
        found = joined(parts, lse, flat, tokens * heads, pieces, column, D, COLUMNS, AT_ONCE)
        tl.store(out + flat * D + column, found.to(out.dtype.element_ty), mask=column < D)


def launch_decode(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax,
    write: bool, tiles: Tiles | None = None,
) -> None:  # fmt: skip
    """Fill `out` [tokens, query_heads, D] (contiguous).

    Args:
        q, k, v, batch, seen, store, softmax: See `moa.kernels.call.Attend`; the last dimension is contiguous, and
            every sequence with new tokens has slots in the store.
        out: Written whole.
        write: Also append the new keys and values to the store (at most 64 tokens per sequence).
        tiles: Tile shape, the device's own by default.
    """
    parts, lse = room(out, store)
    with on_device(q):
        attend_pieces(
            q, k, v, parts, lse, batch=batch, seen=seen, store=store, softmax=softmax, write=write,
            tiles=tiles or tiles_of(q, k, batch),
        )  # fmt: skip
        if lse is not out:
            join(parts, lse, out, batch=batch, seen=seen, store=store, groups=k.shape[1])


def room(out: Tensor, store: Store) -> tuple[Tensor, Tensor]:
    """Return what pieces fill, their results and the log2 of their denominators; twice `out` if slabs are one piece."""
    most = pieces(store).most
    if most == 1:
        return out, out
    parts = torch.empty((most, *out.shape), dtype=torch.float32, device=out.device)
    return parts, torch.empty((most, *out.shape[:2]), dtype=torch.float32, device=out.device)


def tiles_of(q: Tensor, k: Tensor, batch: Packed) -> Tiles:
    """Return the device's own tiles."""
    tokens, heads, dim = q.shape
    return decode_tiles(dim, q.dtype, -(-tokens // len(batch.past)) * (heads // k.shape[1]))


def attend_pieces(
    q: Tensor, k: Tensor, v: Tensor, parts: Tensor, lse: Tensor, *, batch: Packed, seen: Visibility, store: Store,
    softmax: Softmax, write: bool, tiles: Tiles, reading: Reading | None = None,
) -> None:  # fmt: skip
    """Launch `decode_kernel`; under a `reading` it leaves out slabs in which a row chooses pages."""
    (tokens, heads, dim), groups, (items, size, most) = q.shape, k.shape[1], pieces(store)
    share, given = reading or (None, None)
    decode_kernel[(len(items),)](
        q, k, v, parts, lse, store.k, store.v, items, *seen, share, given, store.base, store.capacity,
        batch.cu_seqlens, batch.past, *softmax, seen.first.shape[1], groups, size, tokens, *q.stride()[:2],
        *k.stride()[:2], *v.stride()[:2], HEADS=heads // groups, D=dim, WIDTH=tiles.width, BLOCK_M=tiles.block_m,
        APPEND=write, SPLIT=most > 1, PRECISION=tiles.precision, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def join(
    parts: Tensor, lse: Tensor, out: Tensor, *, batch: Packed, seen: Visibility, store: Store, groups: int,
    reading: Reading | None = None,
) -> None:  # fmt: skip
    """Fill `out` with the joined pieces; `reading` is None where all rows read what they see."""
    (_, tokens, heads, dim), columns = parts.shape, 32
    share, given = reading or (None, None)
    join_kernel[(len(batch.past), heads, triton.cdiv(dim, columns))](
        parts, lse, out, *seen, share, given, store.capacity, batch.cu_seqlens, batch.past, seen.first.shape[1], groups,
        pieces(store).size, tokens, HEADS=heads // groups, D=dim, COLUMNS=columns, AT_ONCE=32, num_warps=1,
    )  # fmt: skip
