"""`moa.diagnose` from Python."""

import pytest

import moa
from moa.kernels.backend import Backend
from moa.kernels.dispatch import computed_by
from moa.plans.patterns import KeyDiffWindow, Rule


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


def test_what_computes_a_plan_is_said_and_logged(model_folder, caplog, monkeypatch):
    monkeypatch.setattr("moa.kernels.backend.pick", lambda device: "torch")
    dense = moa.diagnose(model_folder).prospect
    assert dense.computed_by == ("torch", "torch")
    plan = moa.Plan.from_rules(dense.model, {}, defaults=KeyDiffWindow(alpha=128, beta=0))
    prefill, decode = moa.diagnose(model_folder, plan).prospect.computed_by
    assert "library attention in groups into whose sinks keys move" in prefill
    assert "when a block ends" in decode
    with caplog.at_level("INFO", "moa"):
        moa.apply(moa.load_model(model_folder)[0], plan, backend="torch").remove()
    assert caplog.messages == [f"prefill of this plan: {prefill}; decode: {decode}"]


def test_what_serves_reads_is_said():
    fake = Backend("gpu", *[None] * 3, prefill_keydiff=print, follow_keydiff=print, summarises=True)
    assert computed_by(fake, False, True) == ("gpu", "gpu, by pages that it chooses")
    prefill, decode = computed_by(fake, True, True)
    assert prefill == "gpu, which also chooses the keys of sinks"
    assert decode.startswith("gpu, by pages that it chooses, and its own kernels move keys")
    assert "library" in computed_by(fake._replace(summarises=False), True, True)[0]


@pytest.mark.parametrize("asked", [{"length": 512}, {"plan": "smollm2-135m-instruct-0.5"}])
def test_a_gain_needs_a_model_and_a_plan(asked):
    with pytest.raises(moa.MoaError, match="give a model and a plan"):
        moa.diagnose(**asked)
