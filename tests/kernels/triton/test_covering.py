"""The selection of cases that the matrix of kernels runs in place of the full product."""

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest


@pytest.mark.parametrize("sizes", [(2, 3), (4, 4, 4, 4), (6, 4, 5, 3, 2, 4), (1, 1)])
def test_every_two_values_meet(cover: Callable[..., list[tuple[Any, ...]]], sizes: tuple[int, ...]) -> None:
    axes = [range(size) for size in sizes]
    rows = cover(*axes)
    for i, j in combinations(range(len(axes)), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(axes[i], axes[j]))
    largest = max(len(a) * len(b) for a, b in combinations(axes, 2))
    assert largest <= len(rows) <= 2 * largest
    assert rows == cover(*axes)
