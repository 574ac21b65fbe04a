"""Choose, on the device, what sinks of other keys than the first hold for every query block of a prefill.

The *candidates* of a (sequence, group) are the keys that its sink holds when the call begins, in their order, then all
keys from the first block besides the sink on, those of the new tokens among them. Candidate i < S lies in slot i of the
sink; the others follow the text. `moa.kernels.keydiff.selection` defines the choice: when the first c blocks of
candidates have left the window, the sink holds the S of greatest score, of equal ones the earlier.

Algorithm. Nothing here goes from block to block, so that a long text fills the device:

1. `scores_kernel`: a program scores 64 candidates, by the additions of the definition in their order.
2. `exits_kernel`: a key is held until S better ones have left, and their number never falls. So a program finds for 64
   candidates the block whose leaving drops them: it counts better ones from the first block on, and most drop soon.
3. `table_kernel`: a program lists what the sink of one query block holds: candidates before its edge that are not
   dropped before it.
4. `keep_kernel` copies what the store shall hold afterwards, before the new tokens overwrite it, and `put_kernel`
   writes it: the sink's keys as they are after the call, and the losers of the block that left last in its place, so
   that it can come back.

Work. Steps 2 and 3 compare scores, n²/128 of them in blocks of 64 at most; keys and values are read once.
"""

import triton
import triton.language as tl

from moa.kernels.keydiff import selection
from moa.kernels.triton.common import BLOCK, RUN_TIME, candidate_rows, load_rows, position_of, slab, slot_of

PINNED = tl.constexpr(selection.PINNED)
NEVER = tl.constexpr(1 << 30)


@triton.jit
def halves(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sums of tile [ROWS, COLUMNS] over columns: one half is added to the other until one is left."""
    for _ in tl.static_range(32):
        if x.shape[1] > 1:
            x = tl.sum(tl.reshape(x, (ROWS, 2, x.shape[1] // 2)), 1)
    return tl.reshape(x, (ROWS,))


@triton.jit
def unit(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return rows scaled to length 1; zeros stay zeros."""
    length = tl.maximum(tl.sqrt_rn(halves(x * x, ROWS, COLUMNS)), 1e-12)
    return tl.div_rn(x, tl.broadcast_to(length[:, None], (ROWS, COLUMNS)))


@triton.jit
def find_pair(
    pair, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
):  # fmt: skip
    """Return of a pair, sequence and which of the groups whose sinks change: where its tokens and its slab lie.

    That is the group, its first new token, how many there are, how many came before; where the slab begins, its sink
    blocks and its ring; the first block besides the sink at the first new token and at the last.
    """
    sequence = pair // moving
    group = tl.load(groups_of + pair % moving)
    start = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - start
    past = tl.load(pasts + sequence).to(tl.int32)
    slot0, sink_blocks, ring = slab(base, capacity, sink, sequence * groups + group, group)
    first += group * blocks
    begin = tl.load(first + past // BLOCK)
    end = tl.load(first + tl.maximum(past + count - 1, 0) // BLOCK)
    return group, start, count, past, slot0, sink_blocks, ring, begin, end


@triton.jit(do_not_specialize=RUN_TIME)
def scores_kernel(
    k, k_store, found, score, position, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups,
    moving, most, room, k_token, k_head, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the scores of 64 candidates to `found` [pairs, room]; those of the sink are in `score` already."""
    pair, block = tl.program_id(1), tl.program_id(0)
    group, start, count, past, slot0, sink_blocks, ring, begin, _ = find_pair(
        pair, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    index = block * BLOCK + tl.arange(0, BLOCK)
    at = position_of(index, sink_blocks, begin)
    if (count == 0) | (tl.min(at, 0) >= past + count):
        return
    held = (begin > sink_blocks) & (block < sink_blocks)
    if held:
        mine = ((pair // moving * groups + group) * (most + BLOCK)).to(tl.int64) + index
        at = tl.load(position + mine).to(tl.int32)
        result = tl.load(score + mine)
    else:
        column = tl.arange(0, WIDTH)
        slow = tl.where(column < D // 4, D // 4 + column, D // 2 + column)
        rows = candidate_rows(
            k + group.to(tl.int64) * k_head, k_token, k_store, at, past, start, slot0, sink_blocks, ring, D
        )
        there = (at < past + count)[:, None] & (column < D // 2)[None, :]
        x = unit(tl.load(rows[:, None] + slow[None, :], mask=there, other=0.0).to(tl.float32), BLOCK, WIDTH)
        mean = unit(tl.reshape(halves(tl.trans(x), WIDTH, BLOCK), (1, WIDTH)), 1, WIDTH)
        result = tl.where(tl.max(at, 0) < past + count, -halves(x * mean, BLOCK, WIDTH), float("-inf"))
    tl.store(found + pair.to(tl.int64) * room + index, tl.where(at < PINNED, float("inf"), result))


@triton.jit(do_not_specialize=RUN_TIME)
def exits_kernel(
    found, exits, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, room
):  # fmt: skip
    """Write how many blocks of candidates have left when 64 of them are dropped to `exits` [pairs, room]."""
    pair, block = tl.program_id(1), tl.program_id(0)
    _, _, count, _, _, sink_blocks, _, begin, end = find_pair(
        pair, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    most = sink_blocks + end - begin
    if (count == 0) | (block >= most):
        return
    found += pair.to(tl.int64) * room
    lane = tl.arange(0, BLOCK)
    index = block * BLOCK + lane
    mine = tl.load(found + index)
    better = tl.zeros([BLOCK], tl.int32)
    exit_ = tl.full([BLOCK], NEVER, tl.int32)
    i = 0
    while (i < most) & (tl.min(better, 0) < sink_blocks * BLOCK):
        other, theirs = i * BLOCK + lane, tl.load(found + i * BLOCK + lane)
        ahead = (theirs[None, :] > mine[:, None]) | (
            (theirs[None, :] == mine[:, None]) & (other[None, :] < index[:, None])
        )
        better += tl.sum(ahead.to(tl.int32), 1)
        i += 1
        exit_ = tl.where((better >= sink_blocks * BLOCK) & (exit_ == NEVER), i, exit_)
    tl.store(exits + pair.to(tl.int64) * room + index, exit_)


@triton.jit(do_not_specialize=RUN_TIME)
def table_kernel(
    exits, table, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, most, room, lines,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write the candidates that a sink holds when `line` more blocks have left: `table` [pairs, lines, most]."""
    pair, line = tl.program_id(1), tl.program_id(0)
    _, _, count, _, _, sink_blocks, _, begin, end = find_pair(
        pair, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    if (count == 0) | (line > end - begin):
        return
    exits += pair.to(tl.int64) * room
    table += (pair.to(tl.int64) * lines + line) * most
    left, done = sink_blocks + line, 0
    for i in range(0, left * BLOCK, AT_ONCE):
        index = i + tl.arange(0, AT_ONCE)
        held = (tl.load(exits + index, mask=index < left * BLOCK, other=0) > left).to(tl.int32)
        place = done + tl.cumsum(held, 0) - held
        tl.store(table + place, index, mask=(held > 0) & (place < sink_blocks * BLOCK))
        done += tl.sum(held, 0)


@triton.jit(do_not_specialize=RUN_TIME)
def keep_kernel(
    k, v, k_store, v_store, k_kept, v_kept, found, exits, table, score, position, score_kept, position_kept, groups_of,
    first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, most, room, lines, k_token, k_head, v_token,
    v_head, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Copy the sink's keys after the call, then those that the last block's leaving drops, to [pairs, most + 64]."""
    pair = tl.program_id(0)
    group, start, count, past, slot0, sink_blocks, ring, begin, end = find_pair(
        pair, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    if (count == 0) | (end == begin):
        return
    left, size, wide = sink_blocks + end - begin, sink_blocks * BLOCK, pair.to(tl.int64)
    found += wide * room
    exits += wide * room
    table += (wide * lines + end - begin - 1) * most
    state = ((pair // moving * groups + group) * (most + BLOCK)).to(tl.int64)
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    lane, column, done = tl.arange(0, BLOCK), tl.arange(0, WIDTH), 0
    for i in range(sink_blocks + 1):
        index = tl.load(table + i * BLOCK + lane, mask=lane < (sink_blocks - i) * BLOCK, other=0)
        index = tl.where(i < sink_blocks, index, (left - 1) * BLOCK + lane)
        wins = (tl.load(exits + index) > left).to(tl.int32)
        place = done + tl.cumsum(wins, 0) - wins
        done += tl.sum(wins, 0)
        place = wide * (most + BLOCK) + tl.where(wins > 0, place, size + i * BLOCK + lane - place)
        at = position_of(index, sink_blocks, begin)
        rows_k = candidate_rows(k, k_token, k_store, at, past, start, slot0, sink_blocks, ring, D)
        rows_v = candidate_rows(v, v_token, v_store, at, past, start, slot0, sink_blocks, ring, D)
        target, mask = place[:, None] * D + column[None, :], (lane >= 0)[:, None] & (column < D)[None, :]
        tl.store(k_kept + target, load_rows(rows_k, lane >= 0, D, WIDTH, False), mask=mask)
        tl.store(v_kept + target, load_rows(rows_v, lane >= 0, D, WIDTH, False), mask=mask)
        held = index < tl.where(begin > sink_blocks, size, 0)
        tl.store(score_kept + place, tl.load(found + index))
        tl.store(position_kept + place, tl.where(held, tl.load(position + state + index, mask=held, other=0), at))


@triton.jit(do_not_specialize=RUN_TIME)
def put_kernel(
    k_store, v_store, k_kept, v_kept, score, position, score_kept, position_kept, groups_of, first, sink, base,
    capacity, cu_seqlens, pasts, blocks, groups, moving, most, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write 64 of the rows that `keep_kernel` copied to their slots, and their scores and positions."""
    pair, block = tl.program_id(1), tl.program_id(0)
    group, _, count, _, slot0, sink_blocks, ring, begin, end = find_pair(
        pair, groups_of, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    if (count == 0) | (end == begin) | (block > sink_blocks):
        return
    lane, column = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    source = pair.to(tl.int64) * (most + BLOCK) + block * BLOCK + lane
    slot = slot_of(tl.where(block < sink_blocks, block, end - 1), slot0, sink_blocks, ring) + lane
    target, mask = slot[:, None] * D + column[None, :], (lane >= 0)[:, None] & (column < D)[None, :]
    tl.store(k_store + target, load_rows(k_kept + source * D, lane >= 0, D, WIDTH, False), mask=mask)
    tl.store(v_store + target, load_rows(v_kept + source * D, lane >= 0, D, WIDTH, False), mask=mask)
    state = ((pair // moving * groups + group) * (most + BLOCK)).to(tl.int64) + block * BLOCK + lane
    tl.store(score + state, tl.load(score_kept + source))
    tl.store(position + state, tl.load(position_kept + source))
