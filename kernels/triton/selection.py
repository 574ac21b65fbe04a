"""Choose, on the device, what sinks of other keys than the first hold for every query block of a prefill.

Algorithm. `candidates.py` says what is chosen of what. Nothing here goes from block to block, so that a long text fills
the device:

1. `scores_kernel`: a program scores 64 candidates, by the additions of the definition in their order.
2. `exits_kernel`: a key is held until S better ones have left, and their number never falls. So a program finds for 64
   candidates the block whose leaving drops them: it counts better ones from the first block on, and most drop soon.
3. `table_kernel`: a program lists what the sink of one query block holds: candidates before its edge that are not
   dropped before it.

What the store shall hold after the call, `moves.py` writes.

Work. Steps 2 and 3 compare scores, n²/128 of them in blocks of 64 at most; slow channels of keys are read once.
"""

import triton
import triton.language as tl

from moa.kernels.triton.candidates import better_ones, candidate_scores, find_pair
from moa.kernels.triton.common import BLOCK, RUN_TIME

NEVER = tl.constexpr(1 << 30)


@triton.jit(do_not_specialize=RUN_TIME)
def scores_kernel(
    k, k_store, found, score, position, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks,
    groups, moving, most, room, k_token, k_head, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the scores of 64 candidates of the sink and the leaving blocks to `found` [pairs, room].

    Those of keys that the sink holds are in `score` already.
    """
    pair, block = tl.program_id(1), tl.program_id(0)
    place, group, start, count, past, slot0, sink_blocks, ring, begin, end = find_pair(
        pair, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    if (count == 0) | (end == begin) | (block >= sink_blocks + end - begin):
        return
    state = place.to(tl.int64) * (most + BLOCK)
    result = candidate_scores(
        k + group.to(tl.int64) * k_head, k_token, k_store, score + state, position + state, block, past, start,
        slot0, sink_blocks, ring, begin, D, WIDTH,
    )  # fmt: skip
    tl.store(found + pair.to(tl.int64) * room + block * BLOCK + tl.arange(0, BLOCK), result)


@triton.jit(do_not_specialize=RUN_TIME)
def exits_kernel(
    found, exits, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, room
):  # fmt: skip
    """Write how many blocks of candidates have left when 64 of them are dropped to `exits` [pairs, room]."""
    pair, block = tl.program_id(1), tl.program_id(0)
    _, _, _, count, _, _, sink_blocks, _, begin, end = find_pair(
        pair, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
    )
    most = sink_blocks + end - begin
    if (count == 0) | (block >= most):
        return
    found += pair.to(tl.int64) * room
    lane = tl.arange(0, BLOCK)
    index = block * BLOCK + lane
    mine = tl.load(found + index)
    better = tl.zeros([BLOCK], tl.int32)
    exit_ = tl.full([BLOCK], NEVER, tl.int32)  # it stays where no block leaves and nothing was scored
    i = 0
    while (i < most) & (tl.min(better, 0) < sink_blocks * BLOCK):
        other = i * BLOCK + lane
        better += better_ones(mine, index, tl.load(found + other), other)
        i += 1
        exit_ = tl.where((better >= sink_blocks * BLOCK) & (exit_ == NEVER), i, exit_)
    tl.store(exits + pair.to(tl.int64) * room + index, exit_)


@triton.jit(do_not_specialize=RUN_TIME)
def table_kernel(
    exits, table, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving, most, room,
    lines, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Write the candidates that a sink holds when `line` more blocks have left: `table` [pairs, lines, most]."""
    pair, line = tl.program_id(1), tl.program_id(0)
    _, _, _, count, _, _, sink_blocks, _, begin, end = find_pair(
        pair, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving
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
