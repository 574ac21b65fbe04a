"""What is special to reads of the numba back-end: shares of the pages, and the search for a threshold."""

import numpy as np
import pytest
import torch

from moa.kernels.numba import operations as ours
from moa.kernels.numba.choose import best
from moa.kernels.numba.pages import LANES
from moa.kernels.softmax import Softmax

SCALE = 0.3


@pytest.mark.parametrize("shares", [2, 3, 50, 1000])
def test_any_number_of_shares_gives_the_same(kit, paged, monkeypatch, shares):
    """Also more threads than slabs, than rows, and than pages; groups that read all beside others."""
    monkeypatch.setattr(ours, "_shares", lambda: shares)
    rules = kit.Rules(np.array([64, 128]), np.array([10**6, 300]), np.array([0, 0]))
    reading, past, total = paged.reading((256, 16), (40, 128)), [500, 311, 20], [503, 312, 20]
    whole = kit.text([503, 312, 20], 6, 2, 16, 0)
    store = paged.summarised(kit, whole, rules, past)
    out = ours.read(
        **whole.new(past, total), seen=rules.seen(600), reading=reading, store=store, softmax=Softmax(SCALE)
    )
    expected, _ = paged.rows(whole, rules, reading, past, total, SCALE)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", [1, 3, 1000])
def test_threshold_of_equal_scores(paged, dtype, values):
    """Few values over and over, so that only some of the pages that are equal to the last one are chosen."""
    random = np.random.default_rng(values)
    for begin, end, count in ((0, 2, 1), (3, 40, 36), (1, 95, 7), (2, 500, 200), (0, 512, 511)):
        scores = random.integers(-values, values, (3, 544)).astype(dtype) / 8
        scores[:, begin:end][:, ::5] -= 200
        expected = paged.best(scores[:, begin:end].T.astype(np.float64), count)
        weights, chosen = np.empty(544, dtype), np.empty(544, np.int32)
        assert len(weights) % LANES == 0
        bits = weights.view(f"i{dtype().itemsize}")
        best(scores, begin, end, count, weights, bits, chosen)
        assert (chosen[:count] - begin).tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_end_the_search(dtype, number):
    """In one page or in all; which pages are chosen then means nothing, but they are such as there are."""
    for where in (slice(7, 8), slice(None)):
        scores = np.random.default_rng(0).normal(size=(3, 544)).astype(dtype)
        scores[1, where] = number
        weights, chosen = np.empty(544, dtype), np.empty(544, np.int32)
        best(scores, 3, 300, 50, weights, weights.view(f"i{dtype().itemsize}"), chosen)
        assert len(set(chosen[:50].tolist())) == 50
        assert ((chosen[:50] >= 3) & (chosen[:50] < 300)).all()
