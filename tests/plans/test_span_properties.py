"""The one function of who sees what: properties over random rules, and a row-by-row oracle in fractions."""

from fractions import Fraction
from math import floor

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans.span import BLOCK, cache_blocks, first_block, live_blocks, span

SINKS = st.integers(1, 8).map(lambda s: s * BLOCK)
ALPHAS = st.integers(-8192, 8192)
BETAS = st.integers(0, 256)
RULES = st.tuples(SINKS, ALPHAS, BETAS)
LENGTHS = st.integers(1, 1_048_576)


def visible_keys(rule, position):
    """Positions that the query at `position` sees, from the definition's words alone."""
    sink, alpha, beta256 = rule
    block = position // 64
    n = 64 * block + 1
    window = max(alpha + Fraction(beta256, 256) * n - sink, Fraction(64))
    first = max(Fraction(sink, 64), Fraction(floor((n - window) / 64)))
    keys = range(position + 1)
    return [j for j in keys if j < sink or first <= j // 64]


@settings(deadline=None)
@given(RULES, st.integers(1, 900))
def test_span_counts_the_visible_keys_of_the_definition(rule, n):
    assert span(*rule, n) == len(visible_keys(rule, n - 1))


@settings(deadline=None)
@given(RULES, st.integers(1, 900))
def test_live_blocks_are_those_that_hold_a_visible_key(rule, n):
    blocks = {j // 64 for j in visible_keys(rule, n - 1)}
    assert live_blocks(*rule, n) == len(blocks)
    assert cache_blocks(*rule, n) == min(len(blocks) + 1, -(-n // 64))


@settings(deadline=None)
@given(RULES)
def test_edge_never_falls_and_rises_by_one_block_at_most(rule):
    first = first_block(*rule, np.arange(1_048_576 // BLOCK))
    steps = np.diff(first)
    assert first[0] == rule[0] // BLOCK
    assert steps.min() >= 0
    assert steps.max() <= 1


@settings(deadline=None)
@given(RULES, LENGTHS)
def test_span_has_the_sink_and_a_block_and_never_more_than_the_text(rule, n):
    keys = int(span(*rule, n))
    assert min(n, rule[0] + 1) <= keys <= n


@settings(deadline=None)
@given(RULES, LENGTHS)
def test_span_is_within_a_block_of_the_rule(rule, n):
    sink, alpha, beta256 = rule
    start = (n - 1) // BLOCK * BLOCK + 1
    wanted = max(alpha + Fraction(beta256, 256) * start, sink + BLOCK)
    keys = int(span(*rule, n))
    # The edge is rounded down to a block, and within a block it stays where the first row put it.
    assert keys == n or wanted <= keys - (n - start) < wanted + BLOCK


@settings(deadline=None)
@given(RULES, st.lists(LENGTHS, min_size=1, max_size=20))
def test_broadcasting_gives_what_single_calls_give(rule, lengths):
    assert span(*rule, np.array(lengths)).tolist() == [int(span(*rule, n)) for n in lengths]


@settings(deadline=None)
@given(SINKS, ALPHAS, BETAS, st.integers(0, 2048), st.integers(0, 256), LENGTHS)
def test_a_larger_rule_sees_no_less(sink, alpha, beta256, more_alpha, more_beta, n):
    assert span(sink, alpha, beta256, n) <= span(sink, alpha + more_alpha, min(256, beta256 + more_beta), n)


@settings(deadline=None)
@given(SINKS, LENGTHS)
def test_alpha_0_beta_1_is_full_attention(sink, n):
    assert span(sink, 0, 256, n) == n


def test_an_empty_sequence_needs_no_block():
    assert live_blocks(64, 128, 0, 0) == cache_blocks(64, 128, 0, 0) == 0
