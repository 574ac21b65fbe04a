"""One new token of each sequence over pools (`pooled.py`), split along the keys, and the join of the pieces."""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, RUN_TIME, in_base_2, load_rows
from moa.kernels.triton.decode import joined, pieces_of, write_rows
from moa.kernels.triton.pieces import SMALLEST_PIECE
from moa.kernels.triton.pooled_blocks import address_of, blocks_of_rows, sweep, table_of

SMALLEST = tl.constexpr(SMALLEST_PIECE)


@triton.jit
def piece_of(capacity, per_piece, groups, program, GROUPS: tl.constexpr):
    """Return the KV head that a program serves, and which of its pieces; pieces are counted head by head."""
    group = tl.arange(0, GROUPS)
    tokens = tl.load(capacity + group, mask=group < groups, other=0)
    counts = tl.where(group < groups, tl.maximum(tl.cdiv(tokens // BLOCK, per_piece), 1), 0)
    before = tl.cumsum(counts, 0) <= program
    return tl.sum(before.to(tl.int32), 0), program - tl.sum(tl.where(before, counts, 0), 0)


@triton.jit
def piece_size(capacity, group, per_piece, used):
    """Return the blocks of a piece where a row sees so many."""
    return tl.maximum(tl.cdiv(used, pieces_of(capacity, group, per_piece)), SMALLEST)


@triton.jit
def only_row(cu_seqlens, lengths, sequence):
    """Return the token and the position of a sequence's only new token; the position is -1 unless it has just one."""
    start = tl.load(cu_seqlens + sequence)
    single = tl.load(cu_seqlens + sequence + 1) - start == 1
    return start, tl.where(single, tl.load(lengths + sequence), 0) - 1


@triton.jit(do_not_specialize=RUN_TIME)
def pooled_decode_kernel(
    q, out, lse, pools, tables, first, sink, capacity, cu_seqlens, lengths, scale, blocks, groups, per_piece, step,
    width, q_token, q_head, HEADS: tl.constexpr, GROUPS: tl.constexpr, SPLIT: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one piece. `out` is [tokens, heads, D], or with SPLIT [pieces, sequences, heads, D]."""
    group, piece = piece_of(capacity, per_piece, groups, tl.program_id(0), GROUPS)
    sequence = tl.program_id(1)
    token, position = only_row(cu_seqlens, lengths, sequence)
    if position < 0:
        return
    first += group * blocks
    sink_blocks = tl.load(sink + group) // BLOCK
    _, _, _, _, _, used = blocks_of_rows(first, sink_blocks, position, position)
    size = piece_size(capacity, group, per_piece, used)
    begin, end = piece * size, tl.minimum((piece + 1) * size, used)
    if begin >= end:
        return
    to = token
    if SPLIT:
        to = sequence
        rows = tl.num_programs(1).to(tl.int64) * groups * HEADS
        out += piece * rows * D
        lse += piece * rows
    pool, table = address_of(pools, group, q), table_of(tables, group, sequence, width)
    scale, _ = in_base_2(scale, None)
    for tile in range(0, HEADS, BLOCK_M):
        row = tile + tl.arange(0, BLOCK_M)
        live = row < HEADS
        head = group * HEADS + tl.minimum(row, HEADS - 1)
        tile_q = load_rows(q + token.to(tl.int64) * q_token + head.to(tl.int64) * q_head, live, D, WIDTH, True)
        positions = tl.zeros_like(row) + position
        top, total, acc = sweep(
            tile_q, positions, position, position, pool, table, first, sink_blocks, begin, end, step, scale,
            BLOCK_M, D, WIDTH, PRECISION,
        )  # fmt: skip
        write_rows(out, lse, to, head, live, top, total, acc, groups, HEADS, D, WIDTH, SPLIT)


@triton.jit(do_not_specialize=RUN_TIME)
def pooled_join_kernel(
    parts, lse, out, first, sink, capacity, cu_seqlens, lengths, blocks, groups, per_piece,
    HEADS: tl.constexpr, D: tl.constexpr, COLUMNS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write the weighted mean of the pieces, for COLUMNS columns of one sequence and query head."""
    sequence, query_head = tl.program_id(0), tl.program_id(1)
    token, position = only_row(cu_seqlens, lengths, sequence)
    if position < 0:
        return
    group = query_head // HEADS
    _, _, _, _, _, used = blocks_of_rows(first + group * blocks, tl.load(sink + group) // BLOCK, position, position)
    pieces = tl.cdiv(used, piece_size(capacity, group, per_piece, used))
    column, heads = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS), groups * HEADS
    row = sequence.to(tl.int64) * heads + query_head
    found = joined(parts, lse, row, tl.num_programs(0) * heads, pieces, column, D, COLUMNS, AT_ONCE)
    to = out + (token.to(tl.int64) * heads + query_head) * D
    tl.store(to + column, found.to(out.dtype.element_ty), mask=column < D)
