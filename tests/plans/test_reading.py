"""How much a row reads: properties over random rules, lengths and head sizes, and counts made page by page."""

from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans import reading
from moa.plans.span import BLOCK, span

RULES = st.tuples(st.integers(1, 4).map(lambda s: s * BLOCK), st.integers(-4096, 4096), st.integers(0, 256))
LENGTHS = st.integers(1, 262_144)
SIZES = st.sampled_from((8, 16, 64, 80, 96, 128, 256))
READS = st.integers(1, 256)
MOVES = st.booleans()


def row(rule, moves, length):
    """What a row of the rule keeps, and of it always reads."""
    return int(span(*rule, length)), rule[0] if moves else reading.COARSE


def pages(rule, moves, read, length, size):
    """Choices, pages fetched and opened, and bytes, from the definition's words alone."""
    sink, kept = rule[0], int(span(*rule, length))
    positions = [*range(min(sink, length)), *range(max(sink, length - kept + sink), length)]
    full = sorted({j // 16 for j in positions if 16 * (j // 16) + 15 < length})
    start = {0} if not moves else set(range(sink // 16))
    among = [page for page in full if page not in start and page != full[-1]]
    token = 2 * 2 * size  # K and V in 2 bytes
    summary = len(reading.slow_channels(size)) // 2 + 2 + 2
    budget, always = Fraction(read, 256) * length * token, (kept - 16 * len(among)) * token
    if kept * token <= budget:
        return len(among), 4 * len(among), None, kept * token
    left = budget - always - len(among) * summary
    count = min(max(floor(left / (4 * token + 8 * summary)), 0), 4 * len(among))
    opened = min(ceil(Fraction(8 * count, 4)), len(among))
    spent = always + 4 * count * token
    if 0 < count < 4 * len(among):
        spent += (len(among) + 4 * opened) * summary
    return len(among), count, opened, spent


@settings(deadline=None)
@given(RULES, MOVES, READS, st.integers(1, 3000), SIZES)
def test_counts_are_those_of_the_definition(rule, moves, read, length, size):
    kept, start = row(rule, moves, length)
    among, count, opened, spent = pages(rule, moves, read, length, size)
    assert reading.choices(kept, start) == among
    assert reading.fetched(read, length, kept, start, size) == count
    assert reading.read_bytes(read, length, kept, start, size) == spent
    keys = kept - 16 * among + 4 * count
    assert reading.read_bytes(read, length, kept, start, size, 8 * size) == spent + 4 * size * keys  # float32
    if opened is not None:
        assert reading.opened(count, among) == opened


@settings(deadline=None)
@given(RULES, MOVES, LENGTHS, SIZES)
def test_more_read_fetches_no_less(rule, moves, length, size):
    kept, start = row(rule, moves, length)
    reads = np.arange(1, 257)
    assert (np.diff(reading.fetched(reads, length, kept, start, size)) >= 0).all()
    assert (np.diff(reading.read_bytes(reads, length, kept, start, size)) >= 0).all()


@settings(deadline=None)
@given(RULES, MOVES, READS, LENGTHS, SIZES)
def test_bytes_stay_in_the_budget_unless_the_floor_exceeds_it(rule, moves, read, length, size):
    kept, start = row(rule, moves, length)
    spent = int(reading.read_bytes(read, length, kept, start, size))
    always = (kept - 16 * int(reading.choices(kept, start))) * reading.token_bytes(size)
    assert spent == always or 256 * spent <= read * length * reading.token_bytes(size)
    assert always <= spent <= kept * reading.token_bytes(size)


@settings(deadline=None)
@given(RULES, MOVES, LENGTHS, SIZES)
def test_read_1_reads_what_is_kept_and_no_summary(rule, moves, length, size):
    kept, start = row(rule, moves, length)
    assert reading.read_bytes(256, length, kept, start, size) == kept * reading.token_bytes(size)


@settings(deadline=None)
@given(RULES, MOVES, LENGTHS)
def test_pages_to_choose_among_were_full_before_a_call_of_16_tokens(rule, moves, length):
    kept, start = row(rule, moves, length)
    among = int(reading.choices(kept, start))
    newest = length % 16 + 16  # in the floor
    assert kept >= start + 16 * among + newest or among == 0
    assert newest >= reading.SHORT


@pytest.mark.parametrize(("size", "first", "last"), [(64, 16, 63), (128, 32, 127), (8, 2, 7)])
def test_slow_channels_are_the_slower_half_of_the_pairs(size, first, last):
    slow = reading.slow_channels(size)
    assert len(slow) == size // 2
    assert (slow[0], slow[-1]) == (first, last)
    assert set(slow[: size // 4] + size // 2) == set(slow[size // 4 :])


def test_figures_at_8192_tokens():
    """Head size 64, everything kept: 1/8 of 2 MiB."""
    assert reading.summary_bytes(64) == 20
    assert reading.choices(8192, 16) == 510
    assert reading.fetched(32, 8192, 8192, 16, 64) == 205
    assert reading.opened(205, 510) == 410
    assert reading.read_bytes(32, 8192, 8192, 16, 64) == (32 + 820) * 256 + (510 + 1640) * 20
