"""The mirror: the least cost within a budget of harm."""

import numpy as np
import pytest

from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.model import Sliding
from moa.search.budget import Budget, cost, parse
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, objective


def harm_of(profile, solution):
    lengths = Lengths.of(profile)
    table = objective(profile, grid(lengths.all, profile.variants), PLAIN, lengths)
    return float(table[np.arange(len(table)), solution.choice].sum())


@pytest.mark.parametrize(
    ("what", "figure"),
    [
        ("density@1024", lambda plan: plan.density(1024)),
        ("density@3000", lambda plan: plan.density(3000)),
        ("kv_gb@512x3", lambda plan: plan.kv_bytes(512, 3, dtype="bfloat16") / 1e9),
    ],
)
def test_least_cost_within_a_harm(make_profile, what, figure):
    profile = make_profile()
    plan, solution = choose(profile, [Budget("harm", 0.4)], minimise=cost(what))
    assert solution.value == pytest.approx(figure(plan))
    assert harm_of(profile, solution) <= 0.4 * (1 + 1e-8)
    assert solution.gap <= 1.1e-4
    dearer, more = choose(profile, [Budget("harm", 0.1)], minimise=cost(what))
    assert more.value > solution.value
    assert figure(dearer) > figure(plan)


def test_the_least_cost_counts_what_no_rule_changes(make_profile):
    profile = make_profile(layers=3, sliding=Sliding(window=128, layers=(1,)))
    plan, solution = choose(profile, [Budget("harm", 0.4)], minimise=cost("kv_gb@1024"))
    assert solution.value == pytest.approx(plan.kv_bytes(1024, dtype="bfloat16") / 1e9)
    assert plan.model.sliding_kv_bytes(np.array([1024]), "bfloat16") > 0


def test_both_ways_meet(make_profile):
    profile = make_profile()
    _, least_harm = choose(profile, [parse("density", "0.6@1024")])
    _, least_cost = choose(profile, [Budget("harm", least_harm.value)], minimise=cost("density@1024"))
    assert least_cost.value <= 0.6 * (1 + 1e-8)


def test_no_harm_is_dense_and_other_budgets_hold(make_profile):
    profile = make_profile()
    _, solution = choose(profile, [Budget("harm", 1e-12)], minimise=cost("density@1024"))
    assert solution.value == pytest.approx(1.0)
    with pytest.raises(BudgetInfeasible, match=r"harm<=0\.001 and density<=0\.5@1024 together.*smallest feasible"):
        choose(profile, [Budget("harm", 1e-3), parse("density", "0.5@1024")], minimise=cost("kv_gb@1024"))


@pytest.mark.parametrize(
    "text", ["density", "density@", "harm@512", "ms@512", "density@512x2", "kv_gb@512x", "@512", ""]
)
def test_bad_costs_are_refused(text):
    with pytest.raises(MoaError, match="a cost is written KIND@LENGTH"):
        cost(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "much", "0.4@512", "0.4@512x2"])
def test_bad_harms_are_refused(text):
    with pytest.raises(MoaError, match="harm budget"):
        parse("harm", text)
