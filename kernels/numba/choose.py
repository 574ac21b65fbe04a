"""Compile the choice of pages from their scores, as `moa.kernels.paged.selection` defines it.

The pages of greatest weight are found without sorting. Weights are not negative, so their bits have the order of
integers: a search for the least bits that few enough weights reach counts them again and again, in vector code.
"""

from typing import Any

import numpy as np
from numba import njit

from moa.kernels.numba.online import OPTIONS, exp
from moa.kernels.numba.pages import LANES, at_least, highest
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
        chosen: int32, for `count` numbers and one more.
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
            some[j] += row[j] * share

    weights[end] = 1.001 * len(scores) / count  # fewer than `count` are so great: all have that sum
    low = above = np.int64(bits[end])
    weights[end] = -one
    reached = at_least(bits.ctypes.data, padded, integer(low))
    beyond = reached  # weights whose bits are at least `low`, and at least `above`
    while reached < count:
        above, beyond = low, reached
        low = max(low - (np.int64(1) << (23 if bits.itemsize == 4 else 52)), np.int64(0))  # about half as great
        reached = at_least(bits.ctypes.data, padded, integer(low))
    while reached > count and above - low > 1:
        middle = low + (above - low) // 2
        found = at_least(bits.ctypes.data, padded, integer(middle))
        if found >= count:
            low, reached = middle, found
        else:
            above, beyond = middle, found
    n, equal = 0, count - beyond if reached > count else end  # of those that equal `low` the first are chosen
    mine = bits[begin:end]
    for j in range(len(mine)):
        least = mine[j] == low
        chosen[n] = begin + j
        n += (mine[j] > low) | (least & (equal > 0))
        equal -= least
