"""Compile what all steps share: new keys into their slabs, online softmax, the parts of threads put together.

Each is compiled into the step that calls it, as if it stood there: a call would cost more than some of them do.
"""

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

from moa.kernels.numba.vectors import FAST
from moa.plans.span import BLOCK

NOTHING = -1e30
"""Maximum of no scores; finite, so that differences of it are 0 and not NaN."""

OPTIONS: dict[str, Any] = {"fastmath": set(FAST), "error_model": "numpy"}


@intrinsic  # type: ignore[untyped-decorator]
def _from_bits(context: Any, bits: Any) -> Any:
    """Return the float32 that has these bits."""
    return types.float32(types.int32), lambda c, builder, s, given: builder.bitcast(given[0], ir.FloatType())


def exp(x: Any) -> Any:
    """Return e**x, for x <= 0."""
    raise NotImplementedError


@overload(exp, strict=False)  # type: ignore[untyped-decorator]
def _exp_of(x: Any) -> Any:
    if x == types.float64:
        return lambda x: np.exp(x)

    def single(x: Any) -> Any:
        # 2**n * e**r with |r| <= ln(2)/2, where Taylor's series to r**7 is exact to float32's last place; as plain
        # arithmetic, so that the loop around it becomes vector code.
        x = max(x, np.float32(-87))
        n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
        r = (x - n * np.float32(0.693359375)) + n * np.float32(2.1219444005469057e-4)  # ln(2) in two parts
        p = np.float32(1 / 5040) * r + np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(1 / 2)
        p = p * r + np.float32(1)
        p = p * r + np.float32(1)
        return p * _from_bits((np.int32(n) + np.int32(127)) << np.int32(23))

    return single


def tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of x."""
    raise NotImplementedError


@overload(tanh, strict=False)  # type: ignore[untyped-decorator]
def _tanh_of(x: Any) -> Any:
    one = np.float64(1) if x == types.float64 else np.float32(1)

    def byexp(x: Any) -> Any:  # exact to the last place of 1, which a score's cap then scales
        small = exp(-2 * one * abs(x))
        size = (one - small) / (one + small)
        return -size if x < 0 else size

    return byexp


@njit(inline="always", **OPTIONS)  # type: ignore[untyped-decorator]
def write(
    k: Any, v: Any, keys: Any, values: Any, base: Any, capacity: Any, sink: Any, cu_seqlens: Any, past: Any
) -> None:  # fmt: skip
    """Write the new keys and values [tokens, KV heads, size] of all sequences to their places in the slabs."""
    for s in range(len(past)):
        for token in range(cu_seqlens[s], cu_seqlens[s + 1]):
            at = past[s] + token - cu_seqlens[s]
            for g in range(len(sink)):
                sinks, block = sink[g] // BLOCK, at // BLOCK
                if block >= sinks:
                    block = sinks + (block - sinks) % max(1, capacity[s, g] // BLOCK - sinks)
                slot = base[s, g] + BLOCK * block + at % BLOCK
                for d in range(k.shape[2]):
                    keys[slot, d] = k[token, g, d]
                    values[slot, d] = v[token, g, d]


@cache
def softener(kind: str, capped: bool) -> Any:
    """Return the compiled function that makes a head's scores weights, in step with those before them.

    Returns:
        (scores, h, known, factor, limit, top, total, sums, part, row): `known` scores of head `h` become weights; the
        maximum, total and weighted sum that row `row` of `part` has so far follow.
    """
    wide = np.float64 if kind == "float64" else np.float32

    def soften(
        scores: Any, h: Any, known: Any, factor: Any, limit: Any, top: Any, total: Any, sums: Any, part: Any, row: Any
    ) -> None:  # fmt: skip
        highest = top[part, row]
        for j in range(known):
            scores[h, j] *= factor
            if capped:
                scores[h, j] = limit * tanh(scores[h, j])
            highest = max(highest, scores[h, j])
        shrink = exp(top[part, row] - highest)
        top[part, row] = highest
        added = wide(0)
        for j in range(known):
            scores[h, j] = exp(scores[h, j] - highest)
            added += scores[h, j]
        total[part, row] = total[part, row] * shrink + added
        if shrink != 1:
            for d in range(sums.shape[2]):
                sums[part, row, d] *= shrink

    return njit(inline="always", **OPTIONS)(soften)


@cache
def joiner(kind: str, sunk: bool) -> Any:
    """Return the compiled function that puts together what threads did of one row.

    Returns:
        (top, total, sums, begin, end, row, logit, target): parts `begin` to `end` - 1 of row `row`, and the logit of
        its sink where heads are `sunk`, become the row's attention `target` [size].
    """
    wide = np.float64 if kind == "float64" else np.float32

    def join(top: Any, total: Any, sums: Any, begin: Any, end: Any, row: Any, logit: Any, target: Any) -> None:
        highest = logit if sunk else wide(NOTHING)
        for part in range(begin, end):
            highest = max(highest, top[part, row])
        whole = exp(logit - highest) if sunk else wide(0)
        target[:] = 0
        for part in range(begin, end):
            shrink = exp(top[part, row] - highest)
            whole += shrink * total[part, row]
            for d in range(len(target)):
                target[d] += shrink * sums[part, row, d]
        for d in range(len(target)):
            target[d] /= whole

    return njit(inline="always", **OPTIONS)(join)


@njit(inline="always", **OPTIONS)  # type: ignore[untyped-decorator]
def parts_of(edges: Any, i: Any, threads: Any) -> Any:
    """Return the first thread with a share of item `i` of work dealt out in equal runs, and the one after the last.

    Args:
        edges: Work in all items before each.
        i: The item.
        threads: Their number.
    """
    whole, begin = edges[-1], 0
    while whole * (begin + 1) // threads <= edges[i]:
        begin += 1
    end = begin + 1
    while whole * end // threads < edges[i + 1]:
        end += 1
    return begin, end
