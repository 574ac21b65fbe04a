import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.plans.errors import MoaError
from moa.plans.model import Sliding
from moa.plans.plan import Plan
from moa.search.budget import Budget, cost, limit, parse
from moa.search.grid import grid
from moa.search.question import Question

LENGTHS = (512, 1024)


@pytest.mark.parametrize(
    ("kind", "text", "budget", "written"),
    [
        ("density", "0.5", Budget("density", 0.5), "density<=0.5"),
        ("density", "1@4096", Budget("density", 1.0, 4096), "density<=1@4096"),
        ("read", "0.125@4096", Budget("read", 0.125, 4096), "read<=0.125@4096"),
        ("kv_gb", "1.5@4096x8", Budget("kv_gb", 1.5, 4096, 8), "kv_gb<=1.5@4096x8"),
        ("kv_gb", "2@4096", Budget("kv_gb", 2.0, 4096), "kv_gb<=2@4096"),
        ("decode_ms", "60@4096x4", Budget("decode_ms", 60.0, 4096, 4), "decode_ms<=60@4096x4"),
        ("prefill_ms", "5000@4096", Budget("prefill_ms", 5000.0, 4096), "prefill_ms<=5000@4096"),
    ],
)
def test_parse(kind, text, budget, written):
    assert parse(kind, text) == budget
    assert str(budget) == written


@pytest.mark.parametrize(
    ("kind", "text"),
    [(kind, text) for kind in ("density", "kv_gb", "decode_ms", "prefill_ms")
     for text in ("", "half", "0", "-1", "nan", "inf", "0.5@", "0.5@0", "0.5@-5", "0.5@1k", "0.5@1024x0", "0.5@1024x")]
    + [("read", "1.01"), ("read", "0.5@1024x2")]
    + [("density", "1.01"), ("density", "50"), ("density", "0.5@1024x2"), ("density", "0.5@99999999999999999999"),
       ("kv_gb", "5@4096x100000000000"), ("kv_gb", "5@16777217")],
)  # fmt: skip
def test_bad_budgets_are_refused(kind, text):
    with pytest.raises(MoaError, match="budget"):
        parse(kind, text)


def test_a_kind_that_is_none_is_refused():
    with pytest.raises(
        MoaError, match="a budget is one of density, read, kv_gb, decode_ms, prefill_ms, harm, found 'decode'"
    ):
        parse("decode", "5@1024")
    with pytest.raises(MoaError, match="KIND one of density, read, kv_gb, decode_ms, prefill_ms; found 'harm@1024'"):
        cost("harm@1024")


SLIDING = [None, Sliding(window=128, layers=(1,))]


@settings(max_examples=40)
@given(st.data(), st.sampled_from(SLIDING), st.sampled_from([200, 512, 1024, 3000]), st.integers(1, 3),
       st.sampled_from([None, "float32", "float16", "float8_e5m2"]))  # fmt: skip
def test_costs_are_the_plans_own_figures(make_profile, data, sliding, length, batch, dtype):
    info = make_profile(sliding=sliding, layers=3).model
    rules = grid(LENGTHS, [("sink_window", 64), ("sink_window", 128)])
    groups = len(info.ruled_layers) * info.kv_heads
    choice = np.array(data.draw(st.lists(st.integers(0, len(rules) - 1), min_size=groups, max_size=groups)))
    chosen = [rules.rules[int(i)] for i in choice]
    plan = Plan.from_rules(info, {layer: chosen[2 * i : 2 * i + 2] for i, layer in enumerate(info.ruled_layers)})
    for kind, figure in {
        "density": plan.density(length),
        "kv_gb": plan.kv_bytes(length, batch, dtype=dtype or "bfloat16") / 1e9,
    }.items():
        kept = limit(Budget(kind, 1.0, length, batch, dtype), rules, info, 1024)
        assert kept.cost[np.arange(groups), choice].sum() + kept.fixed == pytest.approx(figure)


def test_without_a_length_a_budget_holds_at_the_longest(make_profile):
    info, rules = make_profile().model, grid(LENGTHS, [("sink_window", 64)])
    found = limit(Budget("density", 0.5), rules, info, 4096)
    assert found.name == "density<=0.5@4096"
    assert found.cost.sum() == pytest.approx(rules.spans(4096).sum() / 4096)
    assert limit(Budget("density", 0.5, 512), rules, info, 4096).name == "density<=0.5@512"


def test_figures_may_be_numbers_of_numpy(make_profile):
    profile = make_profile((512, 1024))
    plans = {
        Question.of(profile, {"density": figures}, "test").solve()[0].fingerprint()
        for figures in (0.5, "0.5", [0.5], np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]))
    }
    assert len(plans) == 1
    with pytest.raises(MoaError, match="density"):
        Question.of(profile, {"density": {1024: 0.5}}, "test")
