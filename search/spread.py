"""Compute the spread of repeated measurements, and the error of their median."""

import math
import statistics
from collections.abc import Sequence

SURE = 0.02
"""Standard error of a median, as a share of it, up to which it counts as known."""


def iqr(values: Sequence[float]) -> float:
    """Return the distance between the quartiles as a share of the median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the median as a share of it; infinite of a single value.

    It is 1.25/1.35 IQR/sqrt(n) (McGill, Tukey and Larsen 1978), with quartiles of the population that a few values are
    drawn from: those of the values themselves lie too close.
    """
    if len(values) < 2:
        return math.inf
    low, middle, high = statistics.quantiles(values, n=4, method="exclusive")
    return 1.25 / 1.35 * (high - low) / math.sqrt(len(values)) / middle
