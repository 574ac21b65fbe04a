"""Compile the summaries of the pages that a step fills: the bytes of `moa.kernels.paged.summaries`, to the last one.

So this code has none of the freedoms that other loops have (`moa.kernels.numba.online.OPTIONS`).
"""

from functools import cache
from typing import Any

import numpy as np
from numba import njit

from moa.kernels.numba.pages import widen
from moa.kernels.paged.summaries import LEAST, QUADS, STEPS
from moa.plans.reading import COARSE, FINE, INSIDE
from moa.plans.span import BLOCK


@njit(error_model="numpy")  # type: ignore[untyped-decorator]
def _sum(x: Any) -> Any:
    """Return the sum of 4 or 16 numbers: of each four in their order, then of the sums."""
    total = np.float32(0)
    for i in range(0, len(x), FINE):
        four = x[i] + x[i + 1] + x[i + 2] + x[i + 3]
        total = four if i == 0 else total + four
    return total


@cache
def fill(kind: str) -> Any:
    """Return the compiled function that writes what a slab's new tokens fill, for keys of this element type."""

    @njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def write(keys: Any, quad: Any, lane: Any) -> None:
        """Write the summary of a page of keys [4 or 16, D] as one of the four of a quad."""
        page, size = keys.shape
        half, quarter = size // 2, size // 4
        x = np.empty((page, size), np.float32)
        widen(keys.ctypes.data, x.ctypes.data, page * size, kind)
        mean, squares = np.empty(half, np.float32), np.empty(half, np.float32)
        inverse = np.float32(1 / page)
        widest = np.float32(0)
        for c in range(half):
            channel = quarter + c if c < quarter else half + c
            mean[c] = _sum(x[:, channel]) * inverse
            for j in range(page):
                x[j, channel] = (x[j, channel] - mean[c]) * (x[j, channel] - mean[c])
            squares[c] = _sum(x[:, channel])
            widest = max(widest, abs(mean[c]))
        width = half
        while width % 2 == 0:
            width //= 2
            for c in range(width):
                squares[c] += squares[width + c]
        total = squares[0]
        for c in range(1, width):
            total += squares[c]

        numbers = quad[size:].view(np.uint16)
        found = np.empty(2, np.float32)
        found[0], found[1] = max(widest / np.float32(STEPS), np.float32(LEAST)), np.sqrt(total * inverse)
        bits = found.view(np.uint32)
        for i in range(2):  # to the nearest bfloat16, of two the even one
            rounded = (bits[i] + np.uint32(0x7FFF) + (bits[i] >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
            numbers[INSIDE * i + lane] = rounded
            bits[i] = rounded << np.uint32(16)
        for c in range(quarter):
            low, high = np.rint(mean[c] / found[0]), np.rint(mean[quarter + c] / found[0])
            low, high = min(max(low, -STEPS), STEPS), min(max(high, -STEPS), STEPS)
            quad[INSIDE * c + lane] = (np.int64(low) & 15) | (np.int64(high) & 15) << 4

    @njit(error_model="numpy")  # type: ignore[untyped-decorator]
    def fill_pages(keys: Any, summaries: Any, base: Any, capacity: Any, sinks: Any, past: Any, count: Any) -> None:
        """Write the summaries of the pages of one slab that tokens `past` to `past + count` - 1 have filled.

        Args:
            keys: The store's [slots, D]; half precision as int16.
            summaries: The store's.
            base, capacity, sinks: First slot of the slab, its slots, and the blocks of its sink.
            past, count: Tokens that it had before, and new ones, at most 16.
        """
        for number in range(past // FINE, (past + count) // FINE):
            at = FINE * number
            block = at // BLOCK
            if block >= sinks:
                block = sinks + (block - sinks) % max(1, capacity // BLOCK - sinks)
            slot = base + BLOCK * block + at % BLOCK
            coarse, lane = at % BLOCK // COARSE, number % INSIDE
            bytes_ = summaries.shape[1] // QUADS
            quads = summaries[slot // BLOCK]
            write(keys[slot : slot + FINE], quads[(1 + coarse) * bytes_ : (2 + coarse) * bytes_], lane)
            if lane == INSIDE - 1:
                write(keys[slot + FINE - COARSE : slot + FINE], quads[:bytes_], coarse)

    return fill_pages
