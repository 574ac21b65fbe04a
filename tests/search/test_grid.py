import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans.patterns import FULL, PATTERNS
from moa.plans.span import BLOCK, span
from moa.search.grid import LEVELS, _windows, grid

LENGTHS = st.lists(st.sampled_from([256, 300, 512, 1000, 1024, 2048, 4096]), min_size=1, max_size=3, unique=True)


@settings(max_examples=12)
@given(
    LENGTHS,
    st.lists(
        st.tuples(st.sampled_from(list(PATTERNS)), st.sampled_from([64, 128, 256])), min_size=1, max_size=3, unique=True
    ),
)
def test_every_rule_is_valid_and_behaves_differently_from_every_other(lengths, patterns):
    rules = grid(tuple(lengths), patterns)
    longest = max(lengths)
    seen = set()
    for rule in rules.rules:
        rows = range(1, longest + 1, 64)  # the first of each block
        visible = [int(span(rule.sink, rule.alpha, rule.beta256, n)) for n in rows]
        seen.add((None,) if visible[-1] == rows[-1] else (rule.pattern, rule.sink, *visible))
    assert len(seen) == len(rules)


@settings(max_examples=12)
@given(LENGTHS)
def test_from_full_to_the_narrowest_cheapest_first(lengths):
    rules = grid(tuple(lengths), [("sink_window", 64)])
    longest = max(lengths)
    assert rules.rules[-1] == FULL
    narrowest = int(span(64, 128, 0, longest))
    assert rules.spans(longest)[0] == narrowest == rules.spans(longest).min()
    cost = sum(rules.spans(n) / n for n in lengths)
    assert (np.diff(cost) >= -1e-12).all()


def test_finer_than_the_papers_and_of_every_kind():
    rules = grid((1024, 2048, 4096), [("sink_window", 64)])
    assert len(rules) >= 54  # the paper's 6 alphas and 9 betas
    alpha, beta = np.array([(rule.alpha, rule.beta) for rule in rules.rules]).T
    assert {0, 1} < set(beta)
    constant = rules.spans(4096)[beta == 0]
    proportional = rules.spans(4096)[(alpha == 0) & (beta > 0)]
    assert len(constant) > 10
    assert len(proportional) > 10
    assert (alpha < 0).any()


@pytest.mark.parametrize("longest", [4096, 4000])
def test_windows_at_the_longest_length_are_those_laid_out(longest):
    rules = grid((1024, longest), [("sink_window", 64)])
    blocks = -(-longest // BLOCK) - rules.first(longest)[:, -1]  # the row's own included
    exact = np.array([rule.alpha != 0 for rule in rules.rules]) & (rules.first(longest)[:, -1] > 1)
    assert exact.sum() > 50
    assert set((blocks[exact] - 1) * BLOCK) <= set(_windows(longest, LEVELS))


def test_every_sink_has_its_rules():
    rules = grid((512, 1024), [("sink_window", 64), ("sink_window", 192)])
    for sink in (64, 192):
        mine = rules.spans(1024)[rules.reach.sink == sink]
        assert mine.min() == span(sink, sink + 64, 0, 1024)
    assert (rules.spans(1024) == 1024).sum() == 1  # full attention has no sink to speak of


def test_every_pattern_has_the_same_windows():
    rules = grid((512, 1024), [("sink_window", 64), ("keydiff_window", 64)])
    kinds = {name: np.array([rule.pattern == name for rule in rules.rules]) for name in PATTERNS}
    windows = {name: {tuple(row) for row in rules.first(1024)[mine] if row[-1] > 1} for name, mine in kinds.items()}
    assert windows["sink_window"] == windows["keydiff_window"]
    assert {type(rule) for rule in rules.rules} == set(PATTERNS.values())
    assert (rules.spans(1024) == 1024).sum() == 1


def test_figures_are_the_plans_one_definition():
    rules = grid((512, 1024), [("sink_window", 64), ("sink_window", 128)])
    for i in range(0, len(rules), 7):
        rule = rules.rules[i]
        assert rules.spans(777)[i] == span(rule.sink, rule.alpha, rule.beta256, 777)
        assert rules.cache_blocks(1024)[i] <= 16
        first = rules.first(1000)[i]
        assert first.shape == (16,)
        assert first[0] == rule.sink // 64


@pytest.mark.parametrize("lengths", [(1024,), (256,), (256, 8192)])
def test_deterministic(lengths):
    one, two = grid(lengths, [("sink_window", 64)]), grid(lengths, [("sink_window", 64)])
    assert one.rules == two.rules
