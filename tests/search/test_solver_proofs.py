"""What the solver claims, against plain HiGHS on the whole program, and against a HiGHS that errs."""

import itertools
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from moa.plans.errors import BudgetInfeasible
from moa.search import solver
from moa.search.quiet import quiet
from moa.search.solver import Limit, solve

SEEDS = 250
"""Instances tried."""


def total(table, choice):
    return float(table[np.arange(len(choice)), choice].sum())


def instance(seed):
    """Up to 9 groups of up to 7 rules, harms of all sizes, up to 3 tight budgets that are not round figures."""
    rng = np.random.default_rng(seed)
    groups, rules, budgets = int(rng.integers(2, 10)), int(rng.integers(2, 8)), int(rng.integers(1, 4))
    costs = rng.random((budgets, groups, rules)) ** rng.choice([0.5, 1, 2])
    objective = rng.exponential(1.0, (groups, rules)) * 10 ** rng.uniform(-2, 2, (groups, 1))
    if rng.random() < 0.5:  # as in a search: what costs more harms less
        objective = np.sort(objective, axis=1)[:, ::-1].copy()
        costs.sort(axis=2)
    limits = []
    for i, cost in enumerate(costs):
        least, most = cost.min(1).sum(), cost.max(1).sum()
        fixed = float(rng.choice([0.0, 0.3]))
        limits.append(Limit(f"cost {i}", cost, float(least + rng.uniform(0.1, 0.7) * (most - least)) + fixed, fixed))
    return objective, limits


def plain(objective, limits):
    """The optimum by HiGHS, of all columns and with no gap; None where nothing is feasible."""
    groups, rules = objective.shape
    one_each = np.kron(np.eye(groups), np.ones(rules))
    rows = [LinearConstraint(limit.cost.ravel(), -np.inf, limit.most - limit.fixed) for limit in limits]
    found = milp(
        objective.ravel(), constraints=[LinearConstraint(one_each, 1, 1), *rows], bounds=Bounds(0, 1),
        integrality=np.ones(objective.size), options={"mip_rel_gap": 0.0},
    )  # fmt: skip
    return None if found.x is None else float(found.fun)


def brute(objective, limits):
    """The optimum by trying every choice."""
    kept = [
        total(objective, list(choice)) for choice in itertools.product(range(objective.shape[1]), repeat=len(objective))
        if all(total(limit.cost, list(choice)) + limit.fixed <= limit.most for limit in limits)
    ]  # fmt: skip
    return min(kept, default=None)


def check(objective, limits, best, solution):
    """What is claimed: the budgets are kept, and no choice is below the bound, so the gap is as small as it says."""
    for limit in limits:
        assert total(limit.cost, solution.choice) + limit.fixed <= limit.most * (1 + 2e-9)
    assert solution.value == pytest.approx(total(objective, solution.choice), rel=1e-12)
    slack = 1e-7 * best  # of the optimum that HiGHS gives
    assert best - slack <= solution.value
    assert solution.lagrangian <= solution.bound <= best + slack
    assert solution.value * (1 - solution.gap) <= best + slack


@cache
def optimum(seed):
    """By plain HiGHS, and where there are few choices by trying all; None where nothing is feasible."""
    objective, limits = instance(seed)
    with quiet():
        best = plain(objective, limits)
    if objective.shape[1] ** len(objective) <= 700:
        tried = brute(objective, limits)
        assert best == (None if tried is None else pytest.approx(tried, rel=1e-7))
    return best


def solvable(count):
    """The first so many instances that something solves, with their optimum."""
    found = ((*instance(seed), optimum(seed)) for seed in range(SEEDS) if optimum(seed) is not None)
    return itertools.islice(found, count)


def test_claimed_gaps_hold_against_plain_highs_and_brute_force():
    solved = dropped = 0
    for seed in range(SEEDS):
        objective, limits = instance(seed)
        best = optimum(seed)
        if best is None:
            with pytest.raises(BudgetInfeasible):
                solve(objective, limits)
            continue
        solution = solve(objective, limits)
        check(objective, limits, best, solution)
        assert solution.gap <= 1.1e-4
        assert not solution.timed_out
        solved += 1
        dropped += solution.columns[1] < solution.columns[0]
    assert solved > 0.8 * SEEDS
    assert dropped > 0.2 * SEEDS


def test_a_choice_of_highs_over_a_budget_is_not_taken(monkeypatch):
    asked = []

    def careless(cost, *, constraints, **more):
        asked.append(cost)
        return milp(cost, constraints=constraints[:1], **more)  # one rule per group, the budgets forgotten

    monkeypatch.setattr(solver, "milp", careless)
    for objective, limits, best in solvable(40):
        with suppress(BudgetInfeasible):  # then nothing was found, and nothing is claimed
            check(objective, limits, best, solve(objective, limits))
    assert asked


@pytest.mark.parametrize("late", [True, False])
def test_where_highs_finds_nothing_the_repaired_choice_and_the_dual_bound_stand(monkeypatch, late):
    def nothing(*_, **__):
        return SimpleNamespace(status=1 if late else 4, x=None, mip_dual_bound=None)

    settled = [solve(objective, limits) for objective, limits, _ in solvable(40)]
    monkeypatch.setattr(solver, "milp", nothing)
    timed_out = 0
    for (objective, limits, best), before in zip(solvable(40), settled, strict=True):
        try:
            solution = solve(objective, limits)
        except BudgetInfeasible:
            continue
        check(objective, limits, best, solution)
        assert solution.bound == pytest.approx(solution.lagrangian)
        assert solution.timed_out == (late and solution.gap > 1e-4)
        assert solution.value >= before.value * (1 - 1e-4)
        timed_out += solution.timed_out
    assert bool(timed_out) == late


def test_where_a_wide_gap_is_allowed_what_is_claimed_holds():
    """Then choices are not optimal, and a bound that is too high shows."""
    short, gap = 0, 0.3
    for objective, limits, best in solvable(120):
        solution = solve(objective, limits, gap=gap)
        check(objective, limits, best, solution)
        assert solution.gap <= 1.01 * gap
        short += solution.value > best * (1 + 1e-6)
    assert short > 10


def test_a_part_of_the_program_proves_nothing_of_the_whole(monkeypatch):
    monkeypatch.setattr(solver, "FIRST", 4)
    for objective, limits, best in solvable(80):
        solution = solve(objective, limits)
        check(objective, limits, best, solution)
        assert solution.gap <= 1.1e-4


def test_the_integer_program_proves_its_own_optimum():
    """Its bound, capped by the best choice known, hides small errors in `solve`: here it stands alone."""
    compared = 0
    for seed in range(SEEDS):
        best = optimum(seed)
        if not best:
            continue
        objective, limits = instance(seed)
        costs = solver._scaled(objective, limits)
        choice, proven, timed_out = solver._integer(objective, costs, np.ones(objective.shape, bool), 2 * best, 0.0, 60)
        assert not timed_out
        assert total(objective, choice) == pytest.approx(best, rel=1e-6)
        assert proven == pytest.approx(best, rel=1e-6)
        compared += 1
    assert compared > SEEDS // 2
