"""Device functions for sinks of other keys than the first: candidates, their scores, and the copy of those kept.

The *candidates* of a (sequence, group) are the keys that its sink holds when a call begins, in their order, then all
keys from the first block besides the sink on, those of the new tokens among them. Candidate i < S lies in slot i of the
sink; the others follow the text. `moa.kernels.keydiff.selection` defines scores and choice: when the first c blocks of
candidates have left the window, the sink holds the S of greatest score, of equal ones the earlier.
"""

import triton
import triton.language as tl

from moa.kernels.keydiff import selection
from moa.kernels.triton.common import BLOCK, candidate_rows, load_rows, position_of, slab

PINNED = tl.constexpr(selection.PINNED)


@triton.jit
def product(x, y):
    """Return x * y, rounded: of a plain product the compiler may make one operation with the sum that takes it."""
    return tl.fma(x, y, tl.zeros_like(x))


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
    length = tl.maximum(tl.sqrt_rn(halves(product(x, x), ROWS, COLUMNS)), 1e-12)
    return tl.div_rn(x, tl.broadcast_to(length[:, None], (ROWS, COLUMNS)))


@triton.jit
def find_pair(pair, groups_of, folded, first, sink, base, capacity, cu_seqlens, pasts, blocks, groups, moving):
    """Return of a pair, sequence and which of the groups whose sinks change: where its tokens, slab and state lie.

    That is its place among all sequences and groups; the group, its first new token, how many there are, how many came
    before; where the slab begins, its sink blocks and its ring; the first block besides the sink as the sink is now,
    and as the last new token sees it.
    """
    sequence = pair // moving
    group = tl.load(groups_of + pair % moving)
    place = sequence * groups + group
    start = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - start
    past = tl.load(pasts + sequence).to(tl.int32)
    slot0, sink_blocks, ring = slab(base, capacity, sink, place, group)
    begin = tl.load(folded + place)
    end = tl.load(first + group * blocks + tl.maximum(past + count - 1, 0) // BLOCK)
    return place, group, start, count, past, slot0, sink_blocks, ring, begin, end


@triton.jit
def candidate_scores(
    k, k_token, k_store, score, position, block, past, start, slot0, sink_blocks, ring, begin, D: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Return the scores of the 64 candidates of `block`, which is full.

    Args:
        k: The group's new keys.
        score, position: Of the keys that the sink holds.
        WIDTH: Half of the head size, padded to a power of two.
    """
    index = block * BLOCK + tl.arange(0, BLOCK)
    at = position_of(index, sink_blocks, begin)
    if (begin > sink_blocks) & (block < sink_blocks):
        at = tl.load(position + index).to(tl.int32)
        result = tl.load(score + index)
    else:
        column = tl.arange(0, WIDTH)
        slow = tl.where(column < D // 4, D // 4 + column, D // 2 + column)
        rows = candidate_rows(k, k_token, k_store, at, past, start, slot0, sink_blocks, ring, D)
        there = (column < D // 2)[None, :]
        x = unit(tl.load(rows[:, None] + slow[None, :], mask=there, other=0.0).to(tl.float32), BLOCK, WIDTH)
        mean = unit(tl.reshape(halves(tl.trans(x), WIDTH, BLOCK), (1, WIDTH)), 1, WIDTH)
        result = -halves(product(x, tl.broadcast_to(mean, (BLOCK, WIDTH))), BLOCK, WIDTH)
    return tl.where(at < PINNED, float("inf"), result)


@triton.jit
def better_ones(mine, index, theirs, other):
    """Count for each score of `mine` the ones of `theirs` that are chosen before it; of equals the earlier."""
    ahead = (theirs[None, :] > mine[:, None]) | ((theirs[None, :] == mine[:, None]) & (other[None, :] < index[:, None]))
    return tl.sum(ahead.to(tl.int32), 1)


@triton.jit
def keep_candidates(
    k, v, k_token, v_token, k_store, v_store, k_kept, v_kept, position, score_kept, position_kept, index, found, place,
    past, start, slot0, sink_blocks, ring, begin, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Copy 64 candidates' keys and values, scores `found` and positions to rows `place` of the `_kept` tensors."""
    lane, column = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    at = position_of(index, sink_blocks, begin)
    rows_k = candidate_rows(k, k_token, k_store, at, past, start, slot0, sink_blocks, ring, D)
    rows_v = candidate_rows(v, v_token, v_store, at, past, start, slot0, sink_blocks, ring, D)
    target, mask = place[:, None] * D + column[None, :], (lane >= 0)[:, None] & (column < D)[None, :]
    tl.store(k_kept + target, load_rows(rows_k, lane >= 0, D, WIDTH, False), mask=mask)
    tl.store(v_kept + target, load_rows(rows_v, lane >= 0, D, WIDTH, False), mask=mask)
    held = index < tl.where(begin > sink_blocks, sink_blocks * BLOCK, 0)
    tl.store(score_kept + place, found)
    tl.store(position_kept + place, tl.where(held, tl.load(position + index, mask=held, other=0), at))
