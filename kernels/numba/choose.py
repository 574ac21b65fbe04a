"""Compile the choice of pages from their scores, as `moa.kernels.paged.selection` defines it.

The pages of greatest weight are found without sorting. Weights are not negative, so their bits have the order of
integers: a search for the least bits that few enough weights reach counts them again and again, in vector code. It
halves what a weight must reach until enough do, then counts only those between the last two.
"""

from typing import Any

import numpy as np
from numba import njit

from moa.kernels.numba.online import OPTIONS, exp
from moa.kernels.numba.pages import LANES, at_least, first_of, highest, reaching
from moa.kernels.paged.selection import LOWEST


@njit(**OPTIONS)  # type: ignore[untyped-decorator]
def best(scores: Any, begin: Any, end: Any, count: Any, weights: Any, bits: Any, chosen: Any) -> None:
    """Write to `chosen` which `count` of the pages `begin` to `end` - 1 have the greatest score, in rising order.

    Args:
        scores: Those of all heads [heads, room], the room a multiple of LANES; overwritten.
        begin, end: Pages to choose among.
        count: How many are chosen, fewer than there are.
        weights: Of the same type [room]; overwritten.
        bits: The same memory as integers.
        chosen: int32 [room]; the first `count` numbers count.
    """
    number, integer, padded = weights.dtype.type, bits.dtype.type, -(-end // LANES) * LANES
    one, lowest = number(1), number(LOWEST)  # float64 would slow all down
    weights[:padded] = -one
    some = weights[begin:end]  # loops from 0 on become vector code
    some[:] = 0
    for h in range(len(scores)):
        scores[h, :begin] = -np.inf
        scores[h, end:padded] = -np.inf
        row, total = scores[h, begin:end], number(0)
        top = highest(scores[h].ctypes.data, padded, row[0])
        for j in range(len(row)):
            row[j] = exp(max(row[j] - top, lowest))
            total += row[j]
        share = one / total
        for j in range(len(row)):
            some[j] = abs(some[j] + row[j] * share)  # a NaN without its sign, which would lie below all others

    weights[end] = 1.001 * len(scores) / count  # fewer than `count` are so great: all have that sum
    low = above = np.int64(bits[end])
    weights[end] = -one
    reached = at_least(bits.ctypes.data, padded, integer(low))
    more = reached  # weights whose bits are at least `low`, and at least `above`
    while reached < count:
        above, more = low, reached
        low = max(low - (np.int64(1) << (23 if bits.itemsize == 4 else 52)), np.int64(0))  # about half as great
        reached = at_least(bits.ctypes.data, padded, integer(low))
    few, found = scores[0].view(bits.dtype), 0  # the scores are no longer needed
    for j in range(0, padded, LANES):
        here = bits.ctypes.data + j * bits.itemsize
        mask = reaching(here, integer(low)) & ~reaching(here, integer(above))
        while mask:
            few[found] = bits[j + first_of(mask)]
            found += 1
            mask &= mask - 1
    among = -(-found // LANES) * LANES
    few[found:among] = -1
    while reached > count and above - low > 1:
        middle = low + (above - low) // 2
        enough = more + at_least(few.ctypes.data, among, integer(middle))
        if enough >= count:
            low, reached = middle, enough
        else:
            above = middle
    j = end
    while reached > count and j > begin:  # of those that equal `low` the last are left out; no NaN does
        j -= 1
        if bits[j] == low:
            bits[j], reached = -1, reached - 1
    n = 0
    for j in range(0, padded, LANES):
        mask = reaching(bits.ctypes.data + j * bits.itemsize, integer(low))
        while mask:
            chosen[n] = j + first_of(mask)
            n += 1
            mask &= mask - 1
