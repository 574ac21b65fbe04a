import ctypes
import itertools
import re
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans.errors import BudgetInfeasible
from moa.search.quiet import quiet
from moa.search.solver import Limit, solve


@st.composite
def instances(draw):
    """Up to 4 groups of up to 4 rules, two costs in small integers so that ties and tight budgets are common."""
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    table = st.lists(st.integers(0, 6), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    objective, *costs = (
        np.array(draw(table), float).reshape(shape) * scale for scale in (draw(st.sampled_from([1e-6, 1, 1e5])), 1, 0.1)
    )
    limits = [
        Limit(f"cost {i}", cost, draw(st.integers(1, 20)) * scale, draw(st.integers(0, 2)) * scale)
        for i, (cost, scale) in enumerate(zip(costs, (1, 0.1), strict=True))
    ]
    return objective, limits[: draw(st.integers(1, 2))]


def total(table, choice):
    return float(table[np.arange(len(choice)), list(choice)].sum())


def brute_force(objective, limits):
    """Value of the best choice that keeps all budgets, None where there is none."""
    groups, rules = objective.shape
    return min(
        (
            total(objective, choice)
            for choice in itertools.product(range(rules), repeat=groups)
            if all(total(limit.cost, choice) + limit.fixed <= limit.most + 1e-9 for limit in limits)
        ),
        default=None,
    )


@settings(max_examples=60)
@given(instances())
def test_solver_against_brute_force(instance):
    objective, limits = instance
    best = brute_force(objective, limits)
    if best is None:
        with pytest.raises(BudgetInfeasible):
            solve(objective, limits)
        return
    solution = solve(objective, limits)
    for limit in limits:
        assert total(limit.cost, solution.choice) + limit.fixed <= limit.most * (1 + 1e-8)
    assert solution.value == pytest.approx(total(objective, solution.choice))
    slack = 1e-4 * best + 1e-9 * objective.max()
    assert best - 1e-12 <= solution.value <= best + slack
    assert solution.bound <= best + slack
    assert solution.gap <= 1.1e-4
    assert not solution.timed_out


@settings(max_examples=25)
@given(instances(), st.integers(0, 5))
def test_the_smallest_feasible_value_is_named_and_is_feasible(instance, below):
    objective, limits = instance
    limit = limits[0]
    least = limit.cost.min(1).sum() + limit.fixed
    tight = Limit("density<=0", limit.cost, least * (1 - 0.1 * (1 + below)), limit.fixed)
    if tight.most >= least:  # nothing costs anything
        return
    with pytest.raises(BudgetInfeasible, match=r"no plan keeps density<=0: the smallest feasible value is") as error:
        solve(objective, [tight])
    named = float(re.findall(r"[\d.e+-]+$", str(error.value))[0])
    assert least <= named <= least * 1.001 + 1e-12
    solution = solve(objective, [Limit("named", limit.cost, named, limit.fixed)])
    assert total(limit.cost, solution.choice) + limit.fixed <= named * (1 + 1e-8)


def test_a_choice_exactly_on_its_budgets_counts():
    objective = np.array([[1.0, 0.0, 0.0]])
    limits = [Limit("a", np.array([[0.0, 1.0, 2.0]]), 2.0), Limit("b", np.array([[0.0, 0.1 + 0.2, 0.1]]), 0.3)]
    assert solve(objective, limits).value == 0
    assert solve(objective, [Limit("a", np.array([[0.0, 1.0, 2.0]]), 1.0), limits[1]]).value == 0


def test_a_budget_that_leaves_no_room_admits_what_costs_nothing():
    cost = np.array([[0.0, 5.0], [7.0, 0.0]])
    solution = solve(np.array([[1.0, 0.0], [0.0, 1.0]]), [Limit("memory", cost, 3.0, fixed=3.0)])
    assert solution.choice.tolist() == [0, 1]


def test_one_large_harm_does_not_hide_the_small_ones():
    objective = np.array([[0.0, 1e6]] + [[0.0, 1e-3 * (i + 1)] for i in range(12)])
    cost = np.array([[1.0, 0.0]] * 13)
    solution = solve(objective, [Limit("a", cost, 7.0)])
    assert solution.choice.tolist() == [0] + [1] * 6 + [0] * 6


def named_values(message):
    """The smallest feasible values at the end of a message about budgets that conflict together."""
    listed = message.partition("smallest feasible values, the others kept: ")[2]
    return {name: float(figure) for figure, name in re.findall(r"([\d.e+-]+) for ([^,]+)", listed)}


def test_budgets_that_exclude_each_other():
    cost = np.array([[0.0, 0.6, 1.0]])
    limits = [Limit("memory<=0.5", cost, 0.5), Limit("time<=0.3", 1 - cost, 0.3)]
    with pytest.raises(BudgetInfeasible, match=r"memory<=0\.5 and time<=0\.3 together") as error:
        solve(np.zeros((1, 3)), limits)
    assert named_values(str(error.value)) == {"memory<=0.5": 1.0, "time<=0.3": 1.0}


def test_of_three_budgets_the_two_that_conflict_are_named():
    cost = np.array([[0.0, 0.6, 1.0]])
    free = Limit("free<=1", cost * 0, 1.0)
    for place in range(3):
        limits = [Limit("memory<=0.5", cost, 0.5), Limit("time<=0.3", 1 - cost, 0.3)]
        limits.insert(place, free)
        with pytest.raises(BudgetInfeasible) as error:
            solve(np.zeros((1, 3)), limits)
        assert named_values(str(error.value)) == {"memory<=0.5": 1.0, "time<=0.3": 1.0}


def test_three_budgets_of_which_no_two_can_be_kept():
    costs = 1 - np.eye(3)  # each rule keeps one budget
    limits = [Limit(name, costs[[i]], 0.5) for i, name in enumerate("abc")]
    with pytest.raises(BudgetInfeasible, match="no plan keeps b and c together") as error:
        solve(np.zeros((1, 3)), limits)
    assert named_values(str(error.value)) == {"b": 1.0, "c": 1.0}


@settings(max_examples=25)
@given(instances())
def test_values_named_in_a_conflict_are_feasible_and_smallest(instance):
    objective, limits = instance
    least = [limit.cost.min(1).sum() + limit.fixed for limit in limits]
    if len(limits) < 2 or any(low > limit.most for low, limit in zip(least, limits, strict=True)):
        return
    try:
        solve(objective, limits)
    except BudgetInfeasible as error:
        found = named_values(str(error))
        assert set(found) == {limit.name for limit in limits}
        for limit, other in (limits, limits[::-1]):
            named = found[limit.name]
            assert solve(objective, [Limit("named", limit.cost, named, limit.fixed), other]).value >= 0
            with pytest.raises(BudgetInfeasible):
                solve(objective, [Limit("below", limit.cost, named * 0.998, limit.fixed), other])


def large(seed=0):
    """90 groups of 30 rules whose harm falls with their cost, as the search makes them."""
    rng = np.random.default_rng(seed)
    cost = np.sort(rng.random((90, 30)), axis=1)
    objective = -np.sort(-rng.exponential(1.0, (90, 30)) * rng.exponential(1.0, (90, 1)), axis=1)
    return objective, [Limit("a", cost, 25.0), Limit("b", cost**2, 14.0)]


def test_large_instances_are_proven_optimal_and_deterministic():
    objective, limits = large()
    one, two = solve(objective, limits), solve(objective, limits)
    assert (one.choice == two.choice).all()
    assert one.gap <= 1.1e-4
    assert one.lagrangian <= one.bound <= one.value
    assert not one.timed_out
    for limit in limits:
        assert total(limit.cost, one.choice) <= limit.most


def test_dominated_rules_are_dropped_and_change_nothing():
    objective, limits = large()
    worse = [Limit(x.name, np.hstack([x.cost, x.cost]), x.most) for x in limits]
    solution = solve(np.hstack([objective, objective + 1e-3]), worse)
    assert solution.columns[0] == 2 * objective.size
    assert solution.columns[1] <= objective.size
    assert (solution.choice < objective.shape[1]).all()
    assert solution.value == pytest.approx(solve(objective, limits).value, rel=2e-4)


def test_more_budget_never_does_worse():
    objective, [limit, _] = large()
    values = [solve(objective[:20], [Limit("a", limit.cost[:20], most)]).value for most in (2, 5, 9)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_no_harm_at_all():
    solution = solve(np.zeros((3, 2)), [Limit("a", np.array([[2.0, 1.0]] * 3), 4.0)])
    assert (solution.value, solution.gap) == (0.0, 0.0)


def test_nothing_is_printed(capfd):
    rng = np.random.default_rng(23)  # an instance in which HiGHS 1.12 prints a line, from C++
    cost = np.sort(rng.random((30, 20)), axis=1)
    objective = -np.sort(-(rng.exponential(1.0, (30, 20)) ** 4), axis=1)
    solve(objective, [Limit("a", cost, 9.0), Limit("b", cost**2, 4.5)])
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr() == ("", "")


def test_only_what_is_written_while_quiet_is_dropped(capfd):
    libc = ctypes.CDLL(None)
    for text, context in ((b"before", nullcontext()), (b"meanwhile", quiet()), (b"after", nullcontext())):
        with context:
            libc.puts(text)
    print("by Python")
    libc.fflush(None)
    assert capfd.readouterr() == ("before\nafter\nby Python\n", "")
