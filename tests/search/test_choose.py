from dataclasses import replace

import numpy as np
import pytest

from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.model import Sliding
from moa.plans.plan import FULL
from moa.search.budget import Budget, cost, parse
from moa.search.choose import choose
from moa.search.front import front
from moa.search.grid import grid
from moa.search.harm import harm
from moa.search.lengths import Lengths
from moa.search.objective import Mix, objective


def test_budgets_are_kept_and_predicted(make_profile):
    profile = make_profile(layers=3, sliding=Sliding(window=128, layers=(1,)))
    budgets = [parse("density", "0.5"), parse("density", "0.4@2048"), parse("kv_gb", "0.000700@1024")]
    plan, solution = choose(profile, budgets)
    plan.check(profile.model)
    assert sorted(plan.groups) == [0, 2]
    assert plan.density(4096) <= 0.5
    assert plan.density(2048) <= 0.4
    assert plan.kv_bytes(1024, dtype="bfloat16") <= 700_000
    assert plan.predicted.lengths == (512, 1024, 2048, 4096)
    assert plan.predicted.measured_to == 1024
    assert plan.predicted.density == pytest.approx([plan.density(n) for n in plan.predicted.lengths], abs=1e-4)
    assert solution.gap <= 1.1e-4


@pytest.mark.parametrize(
    ("recorded", "kv_dtype", "counted"),
    [("torch.float32", None, "float32"), ("torch.float32", "float16", "float16"), (None, None, "bfloat16")],
)
def test_bytes_are_counted_in_the_profiled_models_dtype(make_profile, recorded, kv_dtype, counted):
    profile = replace(make_profile(), meta={"dtype": recorded})
    plan, _ = choose(
        profile, [parse("kv_gb", "0.0007@1024")], lengths=Lengths.of(profile, [512, 1024]), kv_dtype=kv_dtype
    )
    assert 600_000 < plan.kv_bytes(1024, dtype=counted) <= 700_000
    assert plan.predicted.kv_bytes == tuple(plan.kv_bytes(n, dtype=counted) for n in (512, 1024))
    least, solution = choose(profile, [parse("harm", "0.3")], minimise=cost("kv_gb@1024"), kv_dtype=kv_dtype)
    assert solution.value == pytest.approx(least.kv_bytes(1024, dtype=counted) / 1e9)
    *_, last = front(profile, 3, Budget("kv_gb", 1, 1024), kv_dtype=kv_dtype)
    assert last.budget.dtype == counted
    assert last.budget.most == pytest.approx(profile.model.dense_kv_bytes(1024, dtype=counted) / 1e9, rel=1e-4)


def test_harm_is_predicted_at_each_length(make_profile):
    profile = make_profile()
    plan, solution = choose(profile, [parse("density", "0.5")])
    assert len(plan.predicted.harm) == 4
    assert np.mean(plan.predicted.harm) == pytest.approx(solution.value, rel=1e-3)
    alone, solution = choose(profile, [parse("density", "0.5")], lengths=Lengths((512,)))
    assert alone.predicted.harm == pytest.approx([solution.value], rel=1e-3)
    harm, only = parse("harm", "0.3"), Mix(lengths={512: 0.0})
    least, _ = choose(profile, [harm], minimise=parse("density", "1@512"), mix=only, lengths=Lengths((512, 1024)))
    assert 0 < least.predicted.harm[1] <= 0.3


def test_the_group_that_loses_most_keeps_most(make_profile):
    profile = make_profile(sources=("text",))
    for table in profile.cuts.values():
        table[:, 1, 0] *= 1e6
    plan, _ = choose(profile, [parse("density", "0.6")])
    assert plan.rule(1, 0) == FULL


def test_all_of_it_is_dense(make_profile):
    plan, solution = choose(make_profile(), [parse("density", "1")])
    assert {rule for rules in plan.groups.values() for rule in rules} == {FULL}
    assert solution.value == 0


def test_objective_is_the_mean_of_harms_on_one_scale(make_profile):
    profile = make_profile()
    rules = grid(profile.lengths, profile.variants)
    weights = {"text": 3.0}
    expected = 0.0
    for source, weight in (("text", 3.0), ("facts", 1.0)):
        for n in (512, 1024):
            table = harm(profile, rules, (source, n))
            expected = expected + weight / 2 * table / table.max(1).sum()
    assert np.allclose(objective(profile, rules, Mix(weights)), expected)


def test_groups_that_recall_pay_for_what_they_do_not_see(make_profile):
    profile = replace(make_profile(), estimators={"facts": "effect"})
    rules = grid(profile.lengths, profile.variants)
    mix = Mix({"text": 0.0}, own=0.25)
    found = objective(profile, rules, mix)
    own = harm(profile, rules, ("facts", 512))
    worst = own.max(1)
    hidden = np.array([[1 - rules.spans(n)[i] / n for n in (512, 1024)] for i in range(len(rules))])
    expected = 0.75 * worst[:, None] * (hidden**0.25).max(1) + 0.25 * own
    assert np.allclose(found, expected / expected.max(1).sum())
    assert (found[:, (hidden == 0).all(1)] == 0).all()
    profile.cuts["facts", 1024][:] = 7  # not looked at
    assert np.allclose(objective(profile, rules, mix), found)


def test_power_of_harm_and_weights_of_layers(make_profile):
    profile = make_profile((512,), sources=("text",), layers=4)
    rules = grid(profile.lengths, profile.variants)
    table = harm(profile, rules, ("text", 512)) ** 0.5
    expected = table / table.max(1).sum()
    assert np.allclose(objective(profile, rules, Mix(power=0.5)), expected)
    bands = np.repeat([1, 3], 4)[:, None]  # two layers of two groups each
    assert np.allclose(objective(profile, rules, Mix(power=0.5, layers=(1.0, 3.0))), expected * bands)


def test_a_source_without_weight_does_not_count(make_profile):
    profile = make_profile()
    rules = grid(profile.lengths, profile.variants)
    alone = objective(profile, rules, Mix({"facts": 0.0}))
    for cut in [cut for cut in profile.cuts if cut[0] == "facts"]:
        profile.cuts[cut][:] = 0
    assert np.allclose(alone, objective(profile, rules, Mix()))


def test_unit_of_a_source_does_not_count(make_profile):
    profile = make_profile()
    rules = grid(profile.lengths, profile.variants)
    before = objective(profile, rules, Mix())
    for cut in profile.cuts:
        if cut[0] == "facts":
            profile.cuts[cut][:] *= 1000
    assert np.allclose(before, objective(profile, rules, Mix()))


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"prose": 1.0}, "sources of this profile are text, facts, found prose"),
        ({"text": -1.0}, "0 or more"),
        ({"text": 0.0, "facts": 0.0}, "one over 0"),
        ({"text": float("nan")}, "0 or more"),
    ],
)
def test_bad_weights(make_profile, weights, says):
    with pytest.raises(MoaError, match=says):
        choose(make_profile(), [parse("density", "0.5")], mix=Mix(weights))


def test_no_budget(make_profile):
    with pytest.raises(MoaError, match="at least one budget"):
        choose(make_profile(), [])


def test_an_infeasible_budget_names_what_is_feasible(make_profile):
    profile = make_profile()
    with pytest.raises(BudgetInfeasible, match=r"density<=0\.01@4096: the smallest feasible value is 0\.04688$"):
        choose(profile, [parse("density", "0.01")])
    assert choose(profile, [parse("density", "0.375@512")])[0].density(512) == 0.375


def test_a_plan_for_some_of_the_lengths_is_that_of_a_profile_of_them(make_profile):
    profile = replace(make_profile((512, 1024)), estimators={"facts": "effect"})
    budget = [parse("density", "0.5")]
    only = Lengths((1024,))
    plan, _ = choose(profile, budget, lengths=only)
    alone = replace(profile, cuts={cut: t for cut, t in profile.cuts.items() if cut != ("text", 512)})
    rules = grid((1024,), profile.variants)
    assert np.allclose(objective(profile, rules, Mix(), only), objective(alone, rules, Mix(), only))
    assert plan.predicted.lengths == (1024,)
    assert plan.density(1024) <= 0.5
