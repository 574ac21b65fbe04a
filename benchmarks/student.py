"""Give the mean of paired differences with its interval."""

from collections.abc import Sequence
from math import inf

import numpy as np
from scipy.stats import t


def student(each: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean, and Student's 95 % interval, which for a single difference is everything."""
    mean = float(np.mean(each))
    if len(each) < 2:
        return mean, -inf, inf
    half = float(t.ppf(0.975, len(each) - 1) * np.std(each, ddof=1)) / len(each) ** 0.5
    return mean, mean - half, mean + half
