"""Move keys between the slots of sinks of other keys than the first and the last block that has left the window.

Algorithm. A sink holds its keys in the order of the text, and the block that left last takes the keys which that
dropped, so that a crop can bring it back (`moa.kernels.keydiff.sinks`). Rows change places within one slab. So one
kernel copies them elsewhere in their new order, and the next one writes them back. (A barrier within one kernel would
not do: Triton's waits for no store to global memory on AMD.)

1. After a prefill `keep_kernel` copies, before the new tokens overwrite anything, what its tables say.
   In a decode step `scores_kernel` scores the sink's keys and those of the leaving block, and `leave_kernel` counts for
   each the better ones. Their programs end at once unless a block leaves the window of this very (sequence, group) at
   this token, which happens once in 64 tokens or more rarely.
2. `put_kernel` writes the copies to their slots; where there are none, its programs end at once too.

Work. In a step without a leaving block three launches that read a few numbers; with one, (S + 64)² comparisons, and K
and V of S + 64 keys are read and written twice.
"""

import triton
import triton.language as tl

from moa.kernels.triton.candidates import better_ones, find_pair, keep_candidates
from moa.kernels.triton.common import BLOCK, RUN_TIME, load_rows, slab, slot_of


@triton.jit(do_not_specialize=RUN_TIME)
def keep_kernel(
    k, v, k_store, v_store, k_kept, v_kept, found, exits, table, position, score_kept, position_kept, left,
    groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, most, room, lines,
    k_token, k_head, v_token, v_head, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Copy the sink's keys after the call, then those that the last block's leaving drops, to [pairs, most + 64].

    `left` [pairs] gets the last block that leaves, -1 where none does.
    """
    pair = tl.program_id(0)
    place, group, start, count, past, slot0, sink_blocks, ring, begin, end = find_pair(
        pair, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    moves = (count > 0) & (end > begin)
    tl.store(left + pair, tl.where(moves, end - 1, -1))
    if not moves:
        return
    gone, size, wide = sink_blocks + end - begin, sink_blocks * BLOCK, pair.to(tl.int64)
    found += wide * room
    exits += wide * room
    table += (wide * lines + end - begin - 1) * most
    position += place.to(tl.int64) * (most + BLOCK)
    lane, done = tl.arange(0, BLOCK), 0
    for i in range(sink_blocks + 1):
        index = tl.load(table + i * BLOCK + lane, mask=lane < (sink_blocks - i) * BLOCK, other=0)
        index = tl.where(i < sink_blocks, index, (gone - 1) * BLOCK + lane)
        wins = (tl.load(exits + index) > gone).to(tl.int32)
        row = done + tl.cumsum(wins, 0) - wins
        done += tl.sum(wins, 0)
        row = wide * (most + BLOCK) + tl.where(wins > 0, row, size + i * BLOCK + lane - row)
        keep_candidates(
            k + group.to(tl.int64) * k_head, v + group.to(tl.int64) * v_head, k_token, v_token, k_store, v_store,
            k_kept, v_kept, position, score_kept, position_kept, index, tl.load(found + index), row, past, start, slot0,
            sink_blocks, ring, begin, D, WIDTH,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUN_TIME)
def leave_kernel(
    k_store, v_store, k_kept, v_kept, found, position, score_kept, position_kept, left, groups_of,
    folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, most, D: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Do what `keep_kernel` does where at most one block leaves, and it lies in the store."""
    pair = tl.program_id(0)
    place, _, start, count, past, slot0, sink_blocks, ring, begin, end = find_pair(
        pair, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    moves = (count > 0) & (end > begin)
    tl.store(left + pair, tl.where(moves, begin, -1))
    if not moves:
        return
    position += place.to(tl.int64) * (most + BLOCK)
    found += pair.to(tl.int64) * (most + BLOCK)
    size, lane, done = sink_blocks * BLOCK, tl.arange(0, BLOCK), 0
    for i in range(sink_blocks + 1):
        index = lane + i * BLOCK
        mine = tl.load(found + index)
        better = tl.zeros([BLOCK], tl.int32)
        for j in range(sink_blocks + 1):
            other = lane + j * BLOCK
            better += better_ones(mine, index, tl.load(found + other), other)
        wins = (better < size).to(tl.int32)
        row = done + tl.cumsum(wins, 0) - wins
        done += tl.sum(wins, 0)
        row = pair.to(tl.int64) * (most + BLOCK) + tl.where(wins > 0, row, size + index - row)
        keep_candidates(
            k_store, v_store, D, D, k_store, v_store, k_kept, v_kept, position, score_kept, position_kept, index, mine,
            row, past, start, slot0, sink_blocks, ring, begin, D, WIDTH,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUN_TIME)
def put_kernel(
    k_store, v_store, k_kept, v_kept, score, position, score_kept, position_kept, left, folded, can_undo, groups_of,
    sink, base, capacity, groups, moving, most, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write 64 of the rows that were copied to their slots, and their scores and positions; one notes what has left."""
    pair, block = tl.program_id(1), tl.program_id(0)
    last = tl.load(left + pair)
    if last < 0:
        return
    group = tl.load(groups_of + pair % moving)
    place = pair // moving * groups + group
    slot0, sink_blocks, ring = slab(base, capacity, sink, place, group)
    if block > sink_blocks:
        return
    lane, column = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    source = pair.to(tl.int64) * (most + BLOCK) + block * BLOCK + lane
    slot = slot_of(tl.where(block < sink_blocks, block, last), slot0, sink_blocks, ring) + lane
    target, mask = slot[:, None] * D + column[None, :], (lane >= 0)[:, None] & (column < D)[None, :]
    tl.store(k_store + target, load_rows(k_kept + source * D, lane >= 0, D, WIDTH, False), mask=mask)
    tl.store(v_store + target, load_rows(v_kept + source * D, lane >= 0, D, WIDTH, False), mask=mask)
    state = place.to(tl.int64) * (most + BLOCK) + block * BLOCK + lane
    tl.store(score + state, tl.load(score_kept + source))
    tl.store(position + state, tl.load(position_kept + source))
    if block == sink_blocks:
        tl.store(folded + place, last + 1)
        tl.store(can_undo + place, 1)
