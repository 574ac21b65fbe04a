import re
from dataclasses import replace

import pytest

from moa.plans.errors import MoaError
from moa.search.budget import cost, parse
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths
from moa.search.objective import Mix, objective


@pytest.mark.parametrize(
    ("chosen", "longest", "most", "profiled", "ahead"),
    [
        (None, None, None, (512, 1024), (2048, 4096)),
        (None, None, 3000, (512, 1024), (2048, 3000)),
        (None, None, 1024, (512, 1024), ()),
        (None, 10_000, None, (512, 1024), (2048, 4096, 8192, 10_000)),
        (None, 1024, None, (512, 1024), ()),
        ([512], None, None, (512,), ()),
        ([512], 1500, None, (512,), (1024, 1500)),
    ],
)
def test_the_lengths_of_a_plan(make_profile, chosen, longest, most, profiled, ahead):
    profile = make_profile()
    profile = replace(profile, meta={**profile.meta, "max_length": most})
    found = Lengths.of(profile, chosen, longest)
    assert (found.profiled, found.ahead) == (profiled, ahead)
    assert found.longest == found.all[-1] == (*profiled, *ahead)[-1]


@pytest.mark.parametrize("parts", [({}, {"max_length": 3000}), ({"max_length": 3000}, {}), ({}, {})])
def test_the_models_longest_text_is_known_from_any_profile_of_a_sum(make_profile, parts):
    first, *others = ({**make_profile().meta, **part} for part in parts)
    profile = replace(make_profile(), meta={**first, "added": others})
    assert Lengths.of(profile).longest == (3000 if any(parts) else 4096)


@pytest.mark.parametrize(
    ("chosen", "longest", "says"),
    [
        ([600], None, "lengths must be of the profiled [512, 1024], found [600]"),
        ([], None, "lengths must be of the profiled [512, 1024], found []"),
        (None, 1023, "from 1024, the longest profiled one that the plan is for, to 4000, found 1023"),
        (None, 4001, "to 4000, found 4001"),
        (None, 3000.5, "an integer from 1024, the longest profiled one that the plan is for, to 4000, found 3000.5"),
        (None, float("nan"), "to 4000, found nan"),
    ],
)
def test_lengths_that_no_plan_can_be_for(make_profile, chosen, longest, says):
    profile = make_profile()
    profile = replace(profile, meta={"max_length": 4000})
    with pytest.raises(MoaError, match=re.escape(says)):
        Lengths.of(profile, chosen, longest)


def test_recall_counts_where_a_rule_hides_most(make_profile):
    """Rules that see everything up to the profiled lengths are told apart by what they hide beyond."""
    profile = replace(make_profile(sources=("facts",)), estimators={"facts": "effect"})
    lengths = Lengths.of(profile)
    rules = grid(lengths.all, profile.variants)
    found = objective(profile, rules, Mix(own=0.0), lengths)[0]
    unseen = (rules.spans(1024) == 1024) & (rules.spans(4096) < 4096)
    assert unseen.sum() > 3
    assert (found[unseen] > 0).all()
    order = rules.spans(4096)[unseen].argsort()
    assert (found[unseen][order][:-1] >= found[unseen][order][1:]).all()
    assert (objective(profile, rules, Mix(own=0.0))[0][unseen] == 0).all()  # the profiled lengths alone cannot tell


def test_a_budget_binds_the_longest_text_and_leaves_short_ones_free(make_profile):
    plan, _ = choose(make_profile(), [parse("density", "0.25")])
    assert plan.density(4096) <= 0.25
    assert plan.density(512) > 0.375  # all that a budget at every length would leave there is the narrowest rule


@pytest.mark.parametrize("known", [{"max_length": 4000}, {"added": [{"max_length": 4000}]}])
@pytest.mark.parametrize("minimise", [False, True])
def test_no_budget_is_for_longer_texts_than_the_model_takes(make_profile, minimise, known):
    profile = make_profile()
    profile = replace(profile, meta={**profile.meta, **known})
    budgets = [parse("harm", "0.5")] if minimise else [parse("density", "0.5@4001")]
    with pytest.raises(MoaError, match="must be at most 4000, the longest text that the model takes"):
        choose(profile, budgets, minimise=cost("density@4001") if minimise else None)
    assert choose(profile, [parse("density", "0.5@4000")])[0].density(4000) <= 0.5
