"""`moa.diagnose` from Python."""

import pytest

import moa
from moa.plans.patterns import Rule


def test_a_plan_gains_where_it_drops_enough(model_folder):
    dense = moa.diagnose(model_folder).prospect
    assert [gains for gains, _ in dense.runs] == [False]
    assert dense.here is None
    plan = moa.Plan.from_rules(dense.model, {}, defaults=Rule(alpha=128, beta=0))
    found = moa.diagnose(model_folder, plan, 1000)
    (before, short), (after, long) = found.prospect.runs
    assert (before, short, after, long[0]) == (False, (128,), True, 256)
    assert 1000 in long
    assert found.prospect.lengths == (1000, 1024, 4096)
    assert (found.prospect.here.length, found.prospect.here.gains) == (1000, True)
    assert found.backend.right
    assert found.machine.packages["torch"]


@pytest.mark.parametrize("asked", [{"length": 512}, {"plan": "smollm2-135m-instruct-0.5"}])
def test_a_gain_needs_a_model_and_a_plan(asked):
    with pytest.raises(moa.MoaError, match="give a model and a plan"):
        moa.diagnose(**asked)
