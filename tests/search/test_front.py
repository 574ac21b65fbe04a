import pytest

from moa.plans.errors import MoaError
from moa.plans.plan import FULL
from moa.search.budget import Budget, parse
from moa.search.front import front


def test_from_the_smallest_to_dense(make_profile):
    profile = make_profile()
    points = list(front(profile, 5, Budget("density", 1)))
    harms = [point.solution.value for point in points]
    budgets = [point.budget.most for point in points]
    assert harms == sorted(harms, reverse=True)
    assert len(set(harms)) == len(harms) >= 3
    assert harms[-1] == 0
    assert budgets == sorted(budgets)
    assert (budgets[0], budgets[-1]) == (0.046875, 1.0)  # sink and smallest window of 4,096 tokens
    assert {rule for rules in points[-1].plan.groups.values() for rule in rules} == {FULL}
    for point in points:
        assert point.plan.density(4096) <= point.budget.most + 1e-9


def test_another_budget_is_kept_by_all(make_profile):
    limit = parse("density", "0.6@1024")
    points = list(front(make_profile(), 4, Budget("density", 1, 512), [limit]))
    assert all(point.plan.density(1024) <= 0.6 for point in points)
    assert points[-1].solution.value > 0


def test_plans_that_are_no_better_are_left_out(make_profile):
    profile = make_profile()
    for table in profile.cuts.values():
        table[:, :, 1] = 0  # one group of two costs nothing
        table[:, 0] = 0
    points = list(front(profile, 8, Budget("density", 1)))
    assert points[-1].solution.value == 0
    assert points[-1].budget.most < 1
    assert len(points) < 8


def test_a_front_has_two_ends(make_profile):
    with pytest.raises(MoaError, match="2 plans or more, found 1"):
        next(front(make_profile(), 1, Budget("density", 1)))
