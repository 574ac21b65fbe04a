"""Choose the pages of greatest weight, those that `moa.kernels.paged.selection` chooses: of equal ones the earlier.

Algorithm. A page's weight is the sum of its heads' softmax, a float32 that is not negative, so its bits have the order
of integers. A program chooses for one row of one group. It finds the least bits that few enough pages reach by four
histograms of 8 bits each, from the highest on, and then lists what is above, and of what is equal the first ones.
Weights are formed anew from the scores in each of these passes, so that nothing that the program writes is read by it.

Work. Bytes: five times the scores, of which caches hold most.
"""

import triton
import triton.language as tl

from moa.kernels.triton.budget import FINE, INSIDE, find_row, opened, place_of
from moa.kernels.triton.candidates import product
from moa.kernels.triton.common import BLOCK, RUN_TIME
from moa.kernels.triton.page_scores import LOWEST
from moa.kernels.triton.summaries import QUADS


@triton.jit
def _softmax(tops, totals, lines, HEADS: tl.constexpr, UP: tl.constexpr, LINES: tl.constexpr):
    """Return each head's greatest score, and 1 over the sum of powers; 0 for heads that are none."""
    head, lane = tl.arange(0, UP), tl.arange(0, LINES)
    top = tl.full([UP], float("-inf"), tl.float32)
    total = tl.zeros([UP], tl.float32)
    for i in range(0, lines, LINES):
        at = (i + lane)[:, None] * HEADS + head[None, :]
        mask = (i + lane < lines)[:, None] & (head < HEADS)[None, :]
        found = tl.load(tops + at, mask=mask, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(found, 0))
        zero = tl.where(new_top == float("-inf"), 0.0, new_top)
        sums = tl.load(totals + at, mask=mask, other=0.0) * tl.exp2(found - zero[None, :])
        total = total * tl.exp2(top - zero) + tl.sum(sums, 0)
        top = new_top
    real = head < HEADS
    return tl.where(real, top, 0.0), tl.where(real, 1.0 / tl.where(real, total, 1.0), 0.0)


@triton.jit
def _bits(scores, page, there, top, inverse, HEADS: tl.constexpr, UP: tl.constexpr):
    """Return the bits of pages' weights: in every pass the same, so products are rounded before they are added."""
    head = tl.arange(0, UP)
    mask = there[:, None] & (head < HEADS)[None, :]
    found = tl.load(scores + page[:, None] * HEADS + head[None, :], mask=mask, other=0.0)
    power = tl.exp2(tl.maximum(found - top[None, :], LOWEST))
    weight = tl.sum(product(power, tl.broadcast_to(inverse[None, :], power.shape)), 1)
    return weight.to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=RUN_TIME)
def page_choice_kernel(
    scores, tops, totals, listed, chosen, first, sink, share, given, base, capacity, cu_seqlens, pasts, blocks, groups,
    width, begin, room, lines, HEADS: tl.constexpr, UP: tl.constexpr, D: tl.constexpr, AT_ONCE: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """List the pages that one row of one group chooses.

    Args:
        scores, tops, totals: Those of `page_scores_kernel`.
        listed: See there; None to choose coarse pages.
        chosen: Written int32 [rows, groups, ...]: of coarse pages the quads of their fine ones, `room` of a row; of
            fine pages their numbers in the store, `room` of a row.
        AT_ONCE: Quads of a program of that kernel.
        SIZE: Pages that are looked at in one step.
    """
    row, group = tl.program_id(0), tl.program_id(1)
    there, _, where, start, counts = find_row(
        row, group, cu_seqlens, pasts, first, sink, share, given, base, capacity, blocks, groups, width, begin, D
    )
    _, among, fetch = counts
    if (not there) | (fetch == 0) | (fetch == among * INSIDE):
        return
    wanted = opened(fetch, among)
    pair, lane = row.to(tl.int64) * groups + group, tl.arange(0, SIZE)
    chosen += pair * room
    if listed is None:
        low, high, left = start % INSIDE, start % INSIDE + among, wanted
        start -= start % INSIDE
        if wanted == among:
            for i in range(low, high, SIZE):
                page = i + lane
                tl.store(chosen + page - low, _coarse(page + start, where), mask=page < high)
            return
    else:
        low, high, left = 0, wanted * INSIDE, fetch
        listed += pair * (room // INSIDE)
    scores += pair * room * HEADS
    top, inverse = _softmax(
        tops + pair * lines * HEADS, totals + pair * lines * HEADS, tl.cdiv(high, AT_ONCE * INSIDE), HEADS, UP, 32
    )

    number = tl.arange(0, 256)
    least = 0
    for i in tl.static_range(4):
        found = tl.zeros([256], tl.int32)
        for j in range(low, high, SIZE):
            page = j + lane
            bits = _bits(scores, page, page < high, top, inverse, HEADS, UP)
            mine = page < high
            if i > 0:
                mine = mine & ((bits >> (32 - 8 * i)) == least)
            count = tl.histogram(tl.where(mine, (bits >> (24 - 8 * i)) & 255, 0), 256)
            found += count - tl.where(number == 0, SIZE - tl.sum(mine.to(tl.int32), 0), 0)
        digit = tl.sum((tl.cumsum(found, 0, reverse=True) >= left).to(tl.int32), 0) - 1
        left -= tl.sum(tl.where(number > digit, found, 0), 0)
        least = least * 256 + digit

    done, equals = 0, 0
    for j in range(low, high, SIZE):
        page = j + lane
        bits = _bits(scores, page, page < high, top, inverse, HEADS, UP)
        equal = ((bits == least) & (page < high)).to(tl.int32)
        before = equals + tl.cumsum(equal, 0) - equal
        wins = (((bits > least) & (page < high)) | ((equal > 0) & (before < left))).to(tl.int32)
        place = done + tl.cumsum(wins, 0) - wins
        if listed is None:
            value = _coarse(page + start, where)
        else:
            quad = tl.load(listed + page // INSIDE, mask=page < high, other=1)
            value = quad // QUADS * (BLOCK // FINE) + (quad % QUADS - 1) * INSIDE + page % INSIDE
        tl.store(chosen + place, value, mask=wins > 0)
        done += tl.sum(wins, 0)
        equals += tl.sum(equal, 0)


@triton.jit
def _coarse(page, where):
    """Return the quad (int32) of the fine pages in coarse pages of what a row sees."""
    return place_of(page // INSIDE, where) * QUADS + 1 + page % INSIDE
