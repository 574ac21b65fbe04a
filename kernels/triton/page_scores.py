"""Score pages by their summaries, for rows that choose among them.

Algorithm. A program takes 64 quads of four pages for one row of one group: of the coarse pages among which the row
chooses, or in a second launch the fine ones of the coarse pages that it has opened. The numbers of 4 bits are exact in
every element type, so their products with the queries are those of tensor cores; scale and spread follow in float32.
Equal summaries have equal scores, wherever they lie. A program leaves each head's greatest score, and the sum of its
powers over it, from which `page_choice.py` forms the softmax over all pages. All scores hold log2(e).

Work. Bytes: the summaries, 8 bytes per score with its reading. 2 * D flops per page and query head.
"""

import triton
import triton.language as tl

from moa.kernels.paged import selection
from moa.kernels.triton.budget import INSIDE, find_row, opened, place_of
from moa.kernels.triton.common import LOG2E, RUN_TIME, dot, in_base_2
from moa.kernels.triton.summaries import QUADS

LOWEST = tl.constexpr(selection.LOWEST * LOG2E.value)
AT_ONCE = 64
"""Quads of a program."""


@triton.jit
def _halves(word, lane: tl.constexpr):
    """Return the two signed numbers of 4 bits in byte `lane` of 32-bit words."""
    return (word << (28 - 8 * lane)) >> 28, (word << (24 - 8 * lane)) >> 28


@triton.jit
def _bfloat16(words, lane: tl.constexpr):
    """Return the bfloat16 number `lane` of pairs of 32-bit words at `words`, as float32."""
    word = tl.load(words + lane // 2)
    bits = word << 16 if lane % 2 == 0 else word & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=RUN_TIME)
def page_scores_kernel(
    q, summaries, listed, scores, tops, totals, first, sink, share, given, base, capacity, cu_seqlens, pasts, scale,
    blocks, groups, width, begin, room, lines, q_token, q_head, HEADS: tl.constexpr, UP: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, AT_ONCE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Score the pages of AT_ONCE quads.

    Args:
        listed: Quads of the coarse pages that rows have opened, int32 [rows, groups, room / 4], to score the fine pages
            in them; None to score coarse pages.
        scores: Written [rows, groups, room, HEADS], from the first page of the quad with the first page to choose on.
        tops, totals: Written [rows, groups, lines, HEADS], one line per program.
        WIDTH: A quarter of the head size, padded to a power of two.
        UP: Heads, padded.
    """
    line, row, group = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    there, token, where, start, counts = find_row(
        row, group, cu_seqlens, pasts, first, sink, share, given, base, capacity, blocks, groups, width, begin, D
    )
    _, among, fetch = counts
    if (not there) | (fetch == 0) | (fetch == among * INSIDE):
        return
    wanted = opened(fetch, among)
    lane = line * AT_ONCE + tl.arange(0, AT_ONCE)
    pair = row.to(tl.int64) * groups + group
    if listed is None:
        if wanted == among:
            return
        low, high = start % INSIDE, start % INSIDE + among
        quad = place_of(tl.minimum(start // INSIDE + lane, (start + among - 1) // INSIDE), where) * QUADS
    else:
        low, high = 0, wanted * INSIDE
        quad = tl.load(listed + pair * (room // INSIDE) + tl.minimum(lane, wanted - 1))
    if line * AT_ONCE * INSIDE >= high:
        return
    head, column = tl.arange(0, UP), tl.arange(0, WIDTH)
    real, slow = head < HEADS, column < D // 4
    query = q + token.to(tl.int64) * q_token + (group * HEADS + tl.minimum(head, HEADS - 1)).to(tl.int64) * q_head
    query, asked = query[:, None] + D // 4 + column[None, :], real[:, None] & slow[None, :]
    q_low, q_high = tl.load(query, mask=asked, other=0.0), tl.load(query + D // 2, mask=asked, other=0.0)
    wide_low, wide_high = q_low.to(tl.float32), q_high.to(tl.float32)
    length = tl.sqrt(tl.sum(wide_low * wide_low, 1) + tl.sum(wide_high * wide_high, 1)) * 0.5
    scale, _ = in_base_2(scale, None)

    words = summaries.to(tl.pointer_type(tl.int32)) + quad.to(tl.int64) * ((D + 4 * INSIDE) // 4)
    word = tl.load(words[:, None] + column[None, :], mask=(lane >= 0)[:, None] & slow[None, :], other=0)
    scores += pair * room * HEADS
    top = tl.full([UP], float("-inf"), tl.float32)
    total = tl.zeros([UP], tl.float32)
    for i in tl.static_range(INSIDE):
        page = lane * INSIDE + i
        n_low, n_high = _halves(word, i)
        found = dot(n_low.to(tl.float32).to(q_low.dtype), tl.trans(q_low), None, PRECISION)
        found = dot(n_high.to(tl.float32).to(q_low.dtype), tl.trans(q_high), found, PRECISION)
        step, spread = _bfloat16(words + D // 4, i), _bfloat16(words + D // 4 + 2, i)
        found = (found * step[:, None] + length[None, :] * spread[:, None]) * scale
        tl.store(scores + page[:, None] * HEADS + head[None, :], found, mask=(page < high)[:, None] & real[None, :])
        found = tl.where(((page >= low) & (page < high))[:, None], found, float("-inf"))
        new_top = tl.maximum(top, tl.max(found, 0))
        zero = tl.where(new_top == float("-inf"), 0.0, new_top)
        total = total * tl.exp2(top - zero) + tl.sum(tl.exp2(found - zero[None, :]), 0)
        top = new_top
    at = (pair * lines + line) * HEADS + head
    tl.store(tops + at, top, mask=real)
    tl.store(totals + at, total, mask=real)
