import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.search.bounds import dual, reduced, repair, undominated


@st.composite
def problems(draw):
    """Up to 4 groups of up to 4 rules and 3 budgets of 1; small integers, so that ties are common."""
    groups, rules = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    table = st.lists(st.integers(0, 6), min_size=groups * rules, max_size=groups * rules)
    objective, *costs = (np.array(draw(table), float).reshape(groups, rules) for _ in range(draw(st.integers(2, 4))))
    return objective, np.stack(costs) / draw(st.integers(2, 16))


def optimum(objective, costs, allowed=None):
    """Least objective of the choices within all budgets, infinite where there are none."""
    groups = np.arange(len(objective))
    allowed = np.ones(objective.shape, bool) if allowed is None else allowed
    found = [np.inf]
    for choice in itertools.product(range(objective.shape[1]), repeat=len(objective)):
        if allowed[groups, choice].all() and (costs[:, groups, choice].sum(1) <= 1 + 1e-12).all():
            found.append(objective[groups, choice].sum())
    return min(found)


@settings(max_examples=60)
@given(problems())
def test_the_bound_is_never_above_the_optimum(problem):
    objective, costs = problem
    prices, bound = dual(objective, costs)
    assert (prices >= 0).all()
    assert bound <= optimum(objective, costs) + 1e-9
    assert bound == pytest.approx(reduced(objective, costs, prices).min(1).sum() - prices.sum())


def test_a_rule_is_dropped_for_none_that_is_a_little_worse_in_something():
    objective, costs = np.array([[0.5, 0.5004]]), np.array([[[0.5004, 0.5]]])
    assert undominated(objective, costs).all()
    assert undominated(objective, costs[..., ::-1]).tolist() == [[True, False]]


def test_the_bound_is_that_of_the_linear_relaxation():
    objective = np.array([[3.0, 0.0], [1.0, 0.0]])
    cost = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    prices, bound = dual(objective, cost)
    assert bound == pytest.approx(1.0, rel=2e-6)  # the first group takes the whole budget
    assert 1.0 - 1e-9 <= prices[0] <= 3.0 + 1e-9
    assert dual(objective, cost / 1.5)[1] == pytest.approx(0.5, rel=2e-6)  # and here half of the second's is left


@settings(max_examples=60)
@given(problems())
def test_an_optimum_is_left_among_the_undominated(problem):
    objective, costs = problem
    kept = undominated(objective, costs)
    assert kept.any(1).all()
    assert optimum(objective, costs, kept) == optimum(objective, costs)
    for g in range(len(objective)):
        figures = np.stack([objective[g], *costs[:, g]])
        for a, b in itertools.permutations(np.flatnonzero(kept[g]), 2):
            assert (figures[:, a] > figures[:, b]).any()


@settings(max_examples=60)
@given(problems(), st.randoms(use_true_random=False))
def test_a_repaired_choice_keeps_the_budgets_and_cannot_be_improved_by_one_change(problem, random):
    objective, costs = problem
    groups, rules = objective.shape
    start = np.array([random.randrange(rules) for _ in range(groups)])
    before = start.copy()
    choice = repair(objective, costs, start)
    assert (start == before).all()
    if choice is None:
        return
    rows = np.arange(groups)
    assert (costs[:, rows, choice].sum(1) <= 1 + 1e-12).all()
    value = objective[rows, choice].sum()
    assert value >= optimum(objective, costs) - 1e-12
    for g, r in itertools.product(range(groups), range(rules)):
        other = choice.copy()
        other[g] = r
        if (costs[:, rows, other].sum(1) <= 1 - 1e-12).all():
            assert objective[rows, other].sum() >= value - 1e-12


@settings(max_examples=40)
@given(problems())
def test_one_budget_that_can_be_kept_is_always_repaired(problem):
    objective, costs = problem
    dearest = costs[0].argmax(1)
    feasible = costs[0].min(1).sum() <= 1 - 1e-12
    if feasible:
        assert repair(objective, costs[:1], dearest) is not None
    elif costs[0].min(1).sum() > 1 + 1e-9:
        assert repair(objective, costs[:1], dearest) is None
