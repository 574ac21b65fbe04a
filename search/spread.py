"""How far measurements of one thing lie apart."""

import statistics
from collections.abc import Sequence


def iqr(values: Sequence[float]) -> float:
    """Return the distance between the quartiles as a share of the median; 0 of a single value."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle
