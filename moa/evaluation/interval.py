"""Compute intervals for success rates and for the difference of two rates on the same questions."""

import math
from collections.abc import Sequence

Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a success rate (Wilson, 1927)."""
    rate, spread = right / count, Z * Z / count
    middle = (rate + spread / 2) / (1 + spread)
    half = Z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(first: Sequence[bool], second: Sequence[bool]) -> tuple[float, float, float]:
    """Return the rate of `first` minus that of `second` on the same questions, and its 95 % interval.

    Newcombe's method 10 (1998): the two Wilson intervals, joined with the correlation of the pairs. Unlike a normal or
    bootstrap interval it does not shrink to a point when the two agree on every question.
    """
    n = len(first)
    both = sum(a and b for a, b in zip(first, second, strict=True))
    a, b = sum(first), sum(second)
    margins = a * (n - a) * b * (n - b)
    covariance = float(both * (n - a - b + both) - (a - both) * (b - both))
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)  # the method's continuity correction
    phi = covariance / math.sqrt(margins) if margins else 0.0
    p, q, (p_low, p_high), (q_low, q_high) = a / n, b / n, wilson(a, n), wilson(b, n)

    def join(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return p - q, p - q - join(p - p_low, q_high - q), p - q + join(p_high - p, q - q_low)
