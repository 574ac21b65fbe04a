"""A question that is level with a plan: others keep and read no more than it does where trials are measured."""

from dataclasses import replace

from moa.search.objective import Mix
from moa.search.question import Question


def test_other_mixes_keep_no_more_where_no_budget_holds(make_profile):
    question = Question.of(make_profile((512, 1024), seed=2), {"density": 0.25}, "test", max_length=2048)
    first, other = question.solve()[0], Mix(power=0.5, own=0.0)
    assert question.solve(other)[0].density(512) > first.density(512)
    level = question.level(first, 512)
    found = level.solve(other)[0]
    assert found.density(512) <= first.density(512) + 1e-9
    assert found.density(2048) <= 0.25
    assert level.solve()[0].groups == first.groups
    assert question.level(first, 2048) is question  # a budget holds there


def test_they_read_no_more_either(make_profile):
    profile = replace(make_profile((512, 1024), shares=(128, 64, 32)), estimators={"text": "fisher", "facts": "effect"})
    question = Question.of(profile, {"read": 0.3}, "test", max_length=4096)
    first = question.solve()[0]
    found = question.level(first, 512).solve(Mix(lengths={512: 4.0, 1024: 0.25}))[0]
    assert found.read_density(512) <= first.read_density(512) + 1e-9
    assert found.density(512) <= first.density(512) + 1e-9
