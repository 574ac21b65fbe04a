"""Device functions that say what a row reads of what it sees: the counts of `moa.plans.reading`, in its integers.

All take numbers or tiles. A row is one new token of one sequence, for one group.
"""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, slab
from moa.plans import reading

COARSE, FINE, INSIDE = tl.constexpr(reading.COARSE), tl.constexpr(reading.FINE), tl.constexpr(reading.INSIDE)
OPENS, SHORT = tl.constexpr(reading.OPENS), tl.constexpr(reading.SHORT)
READ_STEPS = tl.constexpr(reading.READ_STEPS)


@triton.jit
def budget(share, given, shift, length, D: tl.constexpr):
    """Return the keys that a row sees, the coarse pages among which it chooses, and the fine ones that it fetches.

    Args:
        share, given: Those of its group.
        shift: Blocks between the sink and the window, which it does not see.
        length: Tokens up to the row, itself included, int64.
        D: The head size.
    """
    kept = length - shift * BLOCK
    among = tl.maximum(kept // COARSE - given // COARSE - 1, 0)
    fixed = (kept - among * COARSE) * (4 * D) + among * (D // 4 + 4)
    asked = share * length
    bought = tl.maximum(asked * (4 * D) - fixed * READ_STEPS, 0) // (
        READ_STEPS * (FINE * (4 * D) + OPENS * (D // 4 + 4))
    )
    fits = kept * READ_STEPS <= asked
    fetch = tl.where(fits, among * INSIDE, tl.minimum(bought, among * INSIDE))
    return kept.to(tl.int32), among.to(tl.int32), fetch.to(tl.int32)


@triton.jit
def reads_all(first, share, given, sink_blocks, past, count, D: tl.constexpr):
    """Return whether each of up to 16 new tokens reads all that it sees; `first` points at the group's table."""
    token = tl.arange(0, SHORT)
    there = token < count
    at = past + tl.minimum(token, count - 1)
    shift = tl.maximum(tl.load(first + at // BLOCK) - sink_blocks, 0)
    _, among, fetch = budget(share, given, shift, at.to(tl.int64) + 1, D)
    return tl.max((there & (fetch < among * INSIDE)).to(tl.int32), 0) == 0


@triton.jit
def find_row(
    row, group, cu_seqlens, pasts, first, sink, share, given, base, capacity, blocks, groups, width, begin,
    D: tl.constexpr,
):  # fmt: skip
    """Return whether there is a row, and what it reads; rows are tokens `begin` to `begin + width` of each sequence.

    Returns:
        there: Whether its sequence has so many new tokens.
        token: Its place among all tokens.
        where: The slab's first block, the sink's blocks, the ring's, and where in the ring the window begins.
        start: The first of the coarse pages among which it chooses.
        counts: See `budget`.
    """
    sequence = row // width
    before = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - before
    turn = begin + row % width
    at = tl.load(pasts + sequence) + tl.maximum(tl.minimum(turn, count - 1), 0)
    slot0, sink_blocks, ring = slab(base, capacity, sink, sequence * groups + group, group)
    shift = tl.maximum(tl.load(first + group * blocks + at // BLOCK) - sink_blocks, 0)
    floor = tl.load(given + group)
    counts = budget(tl.load(share + group), floor, shift, at + 1, D)
    where = ((slot0 // BLOCK).to(tl.int32), sink_blocks, ring, shift % ring)
    return turn < count, before + turn, where, floor // COARSE, counts


@triton.jit
def place_of(index, where):
    """Return which block of the store (int32) holds block `index` of what a row sees."""
    first, sink_blocks, ring, turn = where
    inside = index - sink_blocks + turn
    return first + tl.where(index < sink_blocks, index, sink_blocks + inside - tl.where(inside < ring, 0, ring))


@triton.jit
def opened(fetch, among):
    """Return in how many coarse pages the fine summaries are scored."""
    return tl.minimum(fetch * OPENS // INSIDE, among)


@triton.jit
def pages_read(start, counts):
    """Return in fine pages what a row reads, in this order, and how many keys these are.

    Returns:
        The pages before those among which it chooses, those that it has chosen, the first of the pages after them, and
        all that it reads; keys. A row that reads all that it sees has nothing but pages after them.
    """
    kept, among, fetch = counts
    chooses = fetch < among * INSIDE
    head = tl.where(chooses, start * INSIDE, 0)
    chosen = tl.where(chooses, fetch, 0)
    tail = tl.where(chooses, (start + among) * INSIDE, 0)
    left_out = tail - head - chosen
    return head, chosen, tail, tl.cdiv(kept, FINE) - left_out, kept - left_out * FINE


@triton.jit
def tiles_of_piece(pages, pieces):
    """Return how many tiles of 64 keys of what a row reads each of a slab's pieces takes, from the first on."""
    return tl.maximum(tl.cdiv(tl.cdiv(pages, BLOCK // FINE), pieces), 2)
