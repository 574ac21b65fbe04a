from dataclasses import replace
from math import ceil, floor

import numpy as np
import pytest

from moa.profiler.profile import bin_size
from moa.search.grid import grid
from moa.search.harm import harm, monotone


def slow_harm(profile, cut, group, rule):
    """The documented formula, block by block in plain Python, with the window formula of docs/plan.md."""
    length = cut[1]
    per_bin = bin_size(length) // 64
    layer, head = divmod(group, profile.model.kv_heads)
    table = profile.cuts[cut][profile.sinks.index(rule.sink), layer, head]
    blocks = ceil(length / 64)
    total = 0.0
    for b in range(blocks):
        n = 64 * b + 1
        window = max(rule.alpha + rule.beta * n - rule.sink, 64)
        first = max(rule.sink // 64, floor((n - window) / 64))
        row = b // per_bin
        together = sum(1 for other in range(blocks) if other // per_bin == row)
        edge = 0 if first <= rule.sink // 64 else min(ceil(first / per_bin), row)
        total += max(float(x) for x in table[row, : edge + 1]) / together
    return total / (2 * profile.tokens[cut])


@pytest.mark.parametrize(
    ("lengths", "sinks"), [((512, 1024), (64,)), ((300,), (64, 128)), ((9000,), (64,)), ((17000,), (64, 192))]
)
def test_harm_is_the_formula(make_profile, lengths, sinks):
    profile = make_profile(lengths, sinks=sinks)
    rules = grid(lengths, sinks, levels=6)
    found = harm(profile, rules)
    assert found.keys() == profile.cuts.keys()
    for cut, table in found.items():
        assert table.shape == (4, len(rules))
        for i in range(0, len(rules), max(1, len(rules) // 12)):
            for group in (0, 3):
                assert table[group, i] == pytest.approx(slow_harm(profile, cut, group, rules.rule(i)), rel=1e-9)


def test_what_a_cut_improves_counts_as_no_harm(make_profile):
    profile = replace(make_profile((512,), sources=("facts",)), estimators={"facts": "effect"})
    rules = grid((512,), (64,))
    before = harm(profile, rules)["facts", 512]
    squares = harm(replace(profile, estimators={}), rules)["facts", 512]
    assert np.allclose(before, 2 * squares)  # an effect is per token, half of its square is
    for table in profile.cuts.values():
        np.negative(table, out=table)
    assert (before > 0).any()
    assert (harm(profile, rules)["facts", 512] == 0).all()


def test_a_longer_span_never_hurts_more(make_profile):
    profile = make_profile((1024,), sources=("text",))  # its tables rise and fall at random
    rules = grid((1024,), (64,))
    first = rules.first(1024)
    [table] = harm(profile, rules).values()
    compared = 0
    for i in range(len(rules)):
        shorter = (first >= first[i]).all(1)
        compared += shorter.sum() - 1
        assert (table[:, shorter] >= table[:, [i]] - 1e-12).all()
    assert compared > 10 * len(rules)
    assert not (np.diff(profile.cuts["text", 1024], axis=-1) >= 0).all()


def test_full_attention_costs_nothing(make_profile):
    profile = make_profile((512, 1024), sinks=(64, 128))
    rules = grid((512, 1024), (64, 128))
    full = rules.spans(1024) == 1024
    for table in harm(profile, rules).values():
        assert (table[:, full] == 0).all()
        assert (table[:, ~full].max(1) > 0).all()


def test_harm_is_per_response_token(make_profile):
    profile = make_profile((512,), sources=("text",))
    rules = grid((512,), (64,))
    before = harm(profile, rules)["text", 512]
    profile.tokens["text", 512] *= 4
    assert np.allclose(harm(profile, rules)["text", 512], before / 4)


def test_monotone_is_the_least_monotone_table_above():
    table = np.array([[0, 3, 1, 2, 5, -1]], np.float32)
    assert monotone(table).tolist() == [[0, 3, 3, 3, 5, 5]]
