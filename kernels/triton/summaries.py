"""Device functions that summarise pages of keys, in the bytes of `moa.kernels.paged.summaries`, to the last one.

So no product is fused with a sum, divisions and roots are rounded right, and every sum has the order of the definition:
four keys one after the other, then the fours; channels by halves while there are two equal ones, then one by one. A
page's channels lie in a tile [EVEN, ODD] of D/4 = EVEN * ODD, EVEN a power of two, where halves are halves of the first
dimension; low bits and high bits of a byte are two such tiles.
"""

import triton
import triton.language as tl

from moa.kernels.paged import summaries as definition
from moa.kernels.triton.candidates import product
from moa.kernels.triton.common import BLOCK, slot_of
from moa.plans import reading

COARSE, FINE, INSIDE = tl.constexpr(reading.COARSE), tl.constexpr(reading.FINE), tl.constexpr(reading.INSIDE)
QUADS = tl.constexpr(definition.QUADS)
STEPS, LEAST = tl.constexpr(definition.STEPS), tl.constexpr(definition.LEAST)
TO_INTEGER = tl.constexpr(1.5 * 2.0**23)
"""Added to a small float32 and taken away again it leaves the nearest integer, of two the even one."""


def even_part(dim: int) -> int:
    """Return the largest power of two that divides a quarter of the head size."""
    return dim // 4 & -(dim // 4)


@triton.jit
def _fours(a, b, c, d):
    """Return the sum of four tiles in their order."""
    return a + b + c + d


@triton.jit
def _row(x, i, ROWS: tl.constexpr):
    """Return row i of a tile [ROWS, ...], as [1, ...]."""
    at = tl.arange(0, ROWS)[:, None, None]
    return tl.sum(tl.where(at == i, x, 0.0), 0, keep_dims=True)


@triton.jit
def _fours_of_fours(x):
    """Return the sum of the rows of a tile [4, ...] in their order, as [1, ...]."""
    return _fours(_row(x, 0, 4), _row(x, 1, 4), _row(x, 2, 4), _row(x, 3, 4))


@triton.jit
def _over_channels(x, PAGES: tl.constexpr, EVEN: tl.constexpr, ODD: tl.constexpr, ODD_UP: tl.constexpr):
    """Return the sums over the channels of a tile [PAGES, EVEN, ODD_UP], of which ODD columns count: [PAGES]."""
    for _ in tl.static_range(32):
        if x.shape[1] > 1:
            x = tl.sum(tl.reshape(x, (PAGES, 2, x.shape[1] // 2, ODD_UP)), 1)
    x = tl.reshape(x, (PAGES, ODD_UP))
    column = tl.arange(0, ODD_UP)[None, :]
    total = tl.sum(tl.where(column == 0, x, 0.0), 1)
    for i in tl.static_range(1, ODD):
        total += tl.sum(tl.where(column == i, x, 0.0), 1)
    return total


@triton.jit
def _to_bfloat16(x):
    """Return the bits of numbers >= 0 as the nearest bfloat16, of two the even one, in int32."""
    bits = x.to(tl.int32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@triton.jit
def _in_steps(mean, step):
    """Return means as integers of 4 bits."""
    nearest = (tl.div_rn(mean, step) + TO_INTEGER) - TO_INTEGER
    return tl.minimum(tl.maximum(nearest, -STEPS), STEPS).to(tl.int32)


@triton.jit
def _write(quad, lane, full, low, high, squares, inverse, channel, there, D: tl.constexpr):
    """Write summaries of pages as lanes of a quad, those that are `full`.

    Args:
        quad: Where the quad begins.
        lane, full: [PAGES].
        low, high: Means of the channels in the low and the high bits [PAGES, EVEN, ODD_UP].
        squares: Sums of the squared distances from the mean, over keys and channels [PAGES].
        inverse: 1 over the keys of a page.
        channel, there: Which channels a tile holds, and which are real [EVEN, ODD_UP].
    """
    widest = tl.max(tl.max(tl.maximum(tl.abs(low), tl.abs(high)), 2), 1)
    scale = _to_bfloat16(tl.maximum(tl.div_rn(widest, tl.zeros_like(widest) + STEPS), LEAST))
    spread = _to_bfloat16(tl.sqrt_rn(squares * inverse))
    step = tl.broadcast_to((scale << 16).to(tl.float32, bitcast=True)[:, None, None], low.shape)
    number = ((_in_steps(low, step) & 15) | ((_in_steps(high, step) & 15) << 4)).to(tl.uint8)
    at = quad + channel[None, :, :] * INSIDE + lane[:, None, None]
    tl.store(at, number, mask=full[:, None, None] & there[None, :, :])
    numbers = (quad + D).to(tl.pointer_type(tl.int16))
    tl.store(numbers + lane, scale.to(tl.int16), mask=full)
    tl.store(numbers + INSIDE + lane, spread.to(tl.int16), mask=full)


@triton.jit
def _channels(k, k_token, k_store, at, past, length, start, slot, channel, there, D: tl.constexpr):
    """Return channels of the keys at positions `at` of the block at `slot`, for the low and the high bits of bytes.

    Returns:
        Two tiles [4, EVEN, ODD_UP] in float32; 0 where there is no key yet.
    """
    rows = tl.where(at < past, k_store + (slot + at % BLOCK) * D, k + (start + at - past).to(tl.int64) * k_token)
    here = tl.multiple_of(rows, [16])[:, None, None] + D // 4 + channel[None, :, :]
    mask = (at < length)[:, None, None] & there[None, :, :]
    low, high = tl.load(here, mask=mask, other=0.0), tl.load(here + D // 2, mask=mask, other=0.0)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit
def _squares(a, b, c, d, mean):
    """Return the sum of the squared distances of four tiles from a mean, in their order."""
    return _fours(product(a - mean, a - mean), product(b - mean, b - mean), product(c - mean, c - mean),
                  product(d - mean, d - mean))  # fmt: skip


@triton.jit
def summarise_rows(
    k, k_store, summaries, k_token, start, count, past, offset, slot0, sink_blocks, ring, D: tl.constexpr,
    EVEN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the summaries of the pages that new tokens offset .. offset + ROWS of a sequence and group begin and fill.

    The page that the past has begun is among those of offset 0. Keys are read from the caller's tensor where they are
    new, so it does not matter whether they are in their slabs by now. `k` points at the group's first row.
    """
    QUARTER: tl.constexpr = D // 4
    ODD: tl.constexpr = QUARTER // EVEN
    ODD_UP: tl.constexpr = triton.next_power_of_2(ODD)
    even, odd = tl.arange(0, EVEN)[:, None], tl.arange(0, ODD_UP)[None, :]
    channel = odd + ODD * even
    there = (odd < ODD) & (even >= 0)
    fine, one, length = tl.arange(0, INSIDE), tl.zeros([1], tl.int32), past + count
    begin = tl.where(offset == 0, past // COARSE, (past + offset + COARSE - 1) // COARSE)
    end = (past + tl.minimum(offset + ROWS, count) + COARSE - 1) // COARSE
    for page in range(begin, end):
        at = page * COARSE
        block = at // BLOCK
        last = at + fine * FINE + FINE - 1
        full = (last >= past) & (last < length)
        kept = (block < sink_blocks) | (block > (length - 1) // BLOCK - ring)
        if kept & (tl.max(full.to(tl.int32), 0) > 0):
            slot = slot_of(block, slot0, sink_blocks, ring)
            quad = summaries + slot // BLOCK * (QUADS * (D + 4 * INSIDE))
            inside = at % BLOCK // COARSE
            first = at + fine * FINE
            a0, b0 = _channels(k, k_token, k_store, first, past, length, start, slot, channel, there, D)
            a1, b1 = _channels(k, k_token, k_store, first + 1, past, length, start, slot, channel, there, D)
            a2, b2 = _channels(k, k_token, k_store, first + 2, past, length, start, slot, channel, there, D)
            a3, b3 = _channels(k, k_token, k_store, first + 3, past, length, start, slot, channel, there, D)
            sum_a, sum_b = _fours(a0, a1, a2, a3), _fours(b0, b1, b2, b3)
            mean_a, mean_b = sum_a * 0.25, sum_b * 0.25
            squares = _squares(a0, a1, a2, a3, mean_a) + _squares(b0, b1, b2, b3, mean_b)
            _write(
                quad + (1 + inside) * (D + 4 * INSIDE), fine, full, mean_a, mean_b,
                _over_channels(squares, INSIDE, EVEN, ODD, ODD_UP), 0.25, channel, there, D,
            )  # fmt: skip
            if (at + COARSE > past) & (at + COARSE <= length):
                all_a, all_b = _fours_of_fours(sum_a) * 0.0625, _fours_of_fours(sum_b) * 0.0625
                distances = _fours_of_fours(_squares(a0, a1, a2, a3, all_a))
                distances += _fours_of_fours(_squares(b0, b1, b2, b3, all_b))
                _write(
                    quad, one + inside, one == 0, all_a, all_b, _over_channels(distances, 1, EVEN, ODD, ODD_UP), 0.0625,
                    channel, there, D,
                )  # fmt: skip
