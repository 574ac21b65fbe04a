"""The plan object: what it counts, who may use it, and the ways to make one."""

import copy
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from moa.plans.errors import BudgetInfeasible, ModelMismatch, PlanError
from moa.plans.model import ModelInfo, Sliding
from moa.plans.patterns import KeyDiffWindow, SinkWindow
from moa.plans.plan import FULL, Plan, Predicted, Rule
from moa.plans.reading import read_bytes
from moa.plans.span import BLOCK, cache_blocks, first_block, live_blocks, span

ROPE = {"type": "default"}
MODEL = ModelInfo(architecture="LlamaForCausalLM", layers=4, query_heads=6, kv_heads=2, head_size=8, rope=ROPE)
HYBRID = MODEL.model_copy(update={"sliding": Sliding(window=32, layers=(0, 2))})
CHUNKED = MODEL.model_copy(
    update={"layers": 6, "sliding": Sliding(window=32, layers=(0, 4), chunked=True), "keyless": {"conv": (1, 2)}}
)
SHARING = MODEL.model_copy(
    update={
        "layers": 7,
        "sliding": Sliding(window=32, layers=(0, 2)),
        "shared": {"full_attention": (4, 6), "sliding_attention": (5,)},
    }
)

NUMBERS = {
    "sink": st.integers(1, 4).map(lambda s: s * BLOCK),
    "alpha": st.integers(-2048, 4096),
    "beta": st.integers(0, 256).map(lambda k: k / 256),
}
RULES = st.builds(SinkWindow, **NUMBERS) | st.builds(KeyDiffWindow, **NUMBERS)


@st.composite
def plans(draw, models=(MODEL, HYBRID, CHUNKED, SHARING)):
    model = draw(st.sampled_from(models))
    groups = {layer: [draw(RULES) for _ in range(model.kv_heads)] for layer in model.ruled_layers}
    return Plan.from_rules(model, groups)


@settings(deadline=None)
@given(plans(), st.integers(1, 1_048_576))
def test_spans_and_density_come_from_the_one_function(plan, n):
    spans, window = plan.spans(n), 32
    for layer in range(plan.model.layers):
        for head in range(plan.model.kv_heads):
            if layer in plan.groups:
                rule = plan.rule(layer, head)
                assert spans[layer, head] == span(rule.sink, rule.alpha, rule.beta256, n)
            elif plan.model.kinds[layer] in ("conv", "shared"):
                assert spans[layer, head] == 0
            else:
                seen = n - 32 * ((n - 1) // 32) if plan.model.sliding.chunked else min(n, window)
                assert spans[layer, head] == seen
    ruled = spans[list(plan.model.ruled_layers)]
    assert plan.density(n) == pytest.approx((ruled / n).mean(), rel=1e-12)
    assert 0 < plan.density(n) <= 1


@settings(max_examples=50, deadline=None)
@given(plans(), st.integers(1, 3000))
def test_prefill_fraction_is_the_sum_over_every_row(plan, n):
    rows = np.arange(1, n + 1)
    readers = [source for source in plan.model.sources.values() if source in plan.groups]
    rules = [rule for layer in readers for rule in plan.groups[layer]]
    kept = sum(int(span(rule.sink, rule.alpha, rule.beta256, rows).sum()) for rule in rules)
    assert plan.prefill_fraction(n) == pytest.approx(kept / (rows.sum() * len(rules)), rel=1e-12)


def test_prefill_fraction_approaches_beta_and_is_above_the_density_of_a_window():
    beta = Plan.from_rules(MODEL, {}, defaults=Rule(alpha=0, beta=0.25))
    assert beta.prefill_fraction(2**20) == pytest.approx(beta.density(2**20), abs=1e-3)
    window = Plan.uniform(MODEL, 0.25, at=8192)
    assert window.prefill_fraction(8192) > window.density(8192) + 0.1


@settings(deadline=None)
@given(plans(), st.lists(st.integers(0, 1_048_576), min_size=1, max_size=4))
def test_kv_bytes_are_blocks_of_every_sequence_and_the_sliding_layers(plan, lengths):
    expected = 0
    for n in lengths:
        for rules in plan.groups.values():
            expected += sum(int(cache_blocks(r.sink, r.alpha, r.beta256, n)) for r in rules) * 64 * 2 * 8 * 2
    if plan.model.sliding:
        expected += len(lengths) * min(max(lengths), 31) * 2 * 2 * 2 * 8 * 2  # layers, heads, K and V
    assert plan.kv_bytes(lengths, dtype="bfloat16") == expected
    whole = Plan.dense(plan.model)
    assert plan.kv_bytes(lengths) <= whole.kv_bytes(lengths)
    assert plan.kv_bytes(lengths[0], batch_size=3) == plan.kv_bytes([lengths[0]] * 3)


@settings(deadline=None)
@given(plans(), st.integers(1, 1_048_576))
def test_bytes_never_fall_with_length(plan, n):
    assert plan.kv_bytes(n) <= plan.kv_bytes(n + 1)


@settings(deadline=None)
@given(plans(), st.integers(1, 1_048_576), st.lists(st.integers(1, 256), min_size=4, max_size=4))
def test_reads_are_the_mean_over_groups_and_summaries_are_counted(plan, n, reads):
    layers = plan.model.ruled_layers
    rules = {
        layer: [rule.model_copy(update={"read": read / 256}) for rule in plan.groups[layer]]
        for layer, read in zip(layers, reads, strict=False)
    }
    some = Plan.from_rules(plan.model, rules)
    fetched, blocks = [], 0
    for layer, of in rules.items():
        for rule in of:
            kept = span(rule.sink, rule.alpha, rule.beta256, n)
            given = rule.sink if rule.moves_keys() else 16
            fetched.append(read_bytes(rule.read256, n, kept, given, 8) / (4 * 8 * n))
            blocks += int(cache_blocks(rule.sink, rule.alpha, rule.beta256, n)) * some.reads(layer)
    assert some.read_density(n) == pytest.approx(np.mean(fetched))
    assert some.read_density(n) <= some.density(n) + 1e-12
    assert some.density(n) == plan.density(n)
    assert plan.read_density(n) == pytest.approx(plan.density(n))
    ruled, sliding = len(fetched) * 4 * 8 * n, plan.model.sliding_kv_bytes(np.array([n]), 2)
    assert some.read_bytes(n, 1, "bfloat16") == round(some.read_density(n) * ruled) + sliding
    assert some.read_bytes(n, 3, "float32") == 3 * some.read_bytes(n)
    assert some.read_bytes(n, 1, "bfloat16") <= some.read_bytes(n) <= 2 * some.read_bytes(n, 1, "bfloat16")
    assert plan.read_bytes(n) == 2 * plan.read_bytes(n, 1, "bfloat16")  # no summaries
    for dtype in ("float32", "bfloat16"):  # a summary: 2 bytes of 4-bit means, 4 of scale and spread
        assert some.kv_bytes(n, 1, dtype) == plan.kv_bytes(n, 1, dtype) + blocks * (4 + 16) * (2 + 4)


def test_only_layers_that_read_have_summaries():
    plan = Plan.from_rules(MODEL, {1: [FULL, Rule(alpha=0, beta=1, read=1 / 8)]}, defaults=FULL)
    assert plan.kv_bytes(640) == Plan.dense(MODEL).kv_bytes(640) + 2 * 10 * 20 * 6


def test_dense_is_the_model_s_own_cache_rounded_up_to_blocks():
    plan = Plan.dense(MODEL)
    assert plan.density(12345) == plan.prefill_fraction(12345) == 1
    assert plan.kv_bytes(128) == MODEL.dense_kv_bytes(128) == 4 * 2 * 128 * 2 * 8 * 4
    assert plan.kv_bytes(129) == MODEL.dense_kv_bytes(192)


@settings(deadline=None)
@given(plans(), st.integers(1, 500))
def test_tables_and_arrays_agree_with_the_rules(plan, blocks):
    for layer in plan.model.ruled_layers:
        reach = plan.reach(layer)
        table = plan.first_table(layer, blocks)
        assert table.dtype == np.int32
        assert table.shape == (plan.model.kv_heads, blocks)
        assert reach.sink.dtype == np.int64
        assert reach.sink.shape == (plan.model.kv_heads,)
        for head in range(plan.model.kv_heads):
            rule = plan.rule(layer, head)
            assert reach.sink[head] == rule.sink
            numbers = rule.sink, rule.alpha, int(rule.beta * 256)
            assert table[head].tolist() == first_block(*numbers, np.arange(blocks)).tolist()
            for what in (span, live_blocks, cache_blocks):
                mine = getattr(reach, what.__name__)(np.arange(1, blocks))[head]
                assert mine.tolist() == what(*numbers, np.arange(1, blocks)).tolist()


def test_places_without_rules_are_refused_by_name():
    plan = Plan.dense(HYBRID)
    for call in (lambda: plan.rule(0, 0), lambda: plan.reach(2), lambda: plan.first_table(9, 1)):
        with pytest.raises(PlanError, match=r"has no rules; the layers that have are \[1, 3\]"):
            call()
    with pytest.raises(PlanError, match="KV head must be from 0 to 1, found 2"):
        plan.rule(1, 2)
    for call in (plan.spans, plan.density, plan.prefill_fraction):
        with pytest.raises(PlanError, match="length must be an integer of 1 or more, found 0"):
            call(0)
        with pytest.raises(PlanError, match=r"length must be an integer of 1 or more, found 1\.5"):
            call(1.5)


def test_a_plan_cannot_be_changed():
    plan = Plan.dense(MODEL)
    with pytest.raises(ValidationError):
        plan.defaults = FULL
    with pytest.raises(ValueError, match="read-only"):
        plan.reach(0).sink[:] = 0
    before = hash(plan), plan.to_dict()
    for change in (
        lambda: plan.groups.__setitem__(0, plan.groups[1]),
        lambda: plan.groups.pop(0),
        lambda: plan.groups.update({}),
        lambda: plan.model.rope.__setitem__("theta", 5.0),
        lambda: plan.model.rope.clear(),
    ):
        with pytest.raises(TypeError, match="this mapping does not change"):
            change()
    assert (hash(plan), plan.to_dict()) == before
    assert copy.copy(plan) == plan
    assert copy.deepcopy(plan.model) == plan.model


def test_check_names_each_field_that_differs():
    plan = Plan.dense(MODEL)
    plan.check(MODEL.model_copy(update={"name": "a renamed copy"}))
    with pytest.raises(ModelMismatch, match=r"layers: 4 against 5; head_size: 8 against 16$"):
        plan.check(MODEL.model_copy(update={"layers": 5, "head_size": 16}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sink": 65}, "must be a positive multiple of 64, found 65"),
        ({"sink": 0}, "must be a positive multiple of 64, found 0"),
        ({"sink": "64"}, "must be an integer, found '64'"),
        ({"alpha": 1.5}, "must be an integer, found 1.5"),
        ({"alpha": True}, "must be an integer, found True"),
        ({"alpha": 2**31}, "less than or equal to 2147483647"),
        ({"beta": 0.3}, "must be a multiple of 1/256, found 0.3; the nearest are 0.296875 and 0.30078125"),
        ({"beta": 1.5}, "must be a number from 0 to 1, found 1.5"),
        ({"beta": float("nan")}, "must be a number from 0 to 1, found nan"),
        ({"beta": True}, "must be a number from 0 to 1, found True"),
        ({"gamma": 1}, "unknown key"),
    ],
)
def test_rules_outside_the_schema_are_refused(fields, message):
    with pytest.raises(PlanError, match=message):
        Rule(**{"alpha": 0, "beta": 0, **fields})


def test_rules_take_numpy_numbers():
    rule = Rule(sink=np.int64(128), alpha=np.int32(-5), beta=np.float32(0.25))
    assert rule == Rule(sink=128, alpha=-5, beta=0.25)
    assert (type(rule.alpha), type(rule.beta), rule.beta256) == (int, float, 64)


def test_from_rules_takes_the_commonest_rule_as_default():
    rule = Rule(alpha=256, beta=0)
    plan = Plan.from_rules(MODEL, {0: [FULL, rule], 1: [rule, rule], 2: [FULL, rule], 3: [rule, rule]})
    assert plan.defaults == rule
    assert plan.rule(2, 0) == FULL


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({}, "a plan needs rules or defaults"),
        ({0: [FULL, FULL]}, r"layers that take rules are \[0, 1, 2, 3\], found \[0\]"),
        ({layer: [FULL] for layer in range(4)}, "layer 0 has 1 rules for 2 KV heads"),
    ],
)
def test_from_rules_refuses_groups_without_a_rule(rules, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_rules(MODEL, rules)


@settings(deadline=None)
@given(st.integers(1, 8192), st.floats(0.01, 1))
def test_uniform_is_the_widest_window_within_the_density(at, density):
    narrowest = Plan.from_rules(MODEL, {}, defaults=Rule(alpha=128, beta=0)).density(at)
    if narrowest > density + 1e-9:
        with pytest.raises(BudgetInfeasible, match=f"the narrowest window keeps {narrowest:.4g}"):
            Plan.uniform(MODEL, density, at=at)
        return
    plan = Plan.uniform(MODEL, density, at=at)
    rule = plan.defaults
    assert all(r == rule for rules in plan.groups.values() for r in rules)
    assert (rule.sink, rule.beta, rule.alpha % 64) == (64, 0, 0)
    assert plan.density(at) <= density + 1e-9
    wider = Plan.from_rules(MODEL, {}, defaults=Rule(alpha=rule.alpha + 64, beta=0)).density(at)
    assert wider > density or plan.density(at) == 1


def test_uniform_takes_a_density_that_a_window_has_exactly():
    """0.58 * 3200 is just under 1856 in floating point."""
    plan = Plan.uniform(MODEL, 0.58, at=3200)
    assert (plan.defaults.alpha, plan.density(3200)) == (1792, 0.58)


def test_uniform_refuses_what_is_no_density():
    for density in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(PlanError, match="density must be over 0 and at most 1"):
            Plan.uniform(MODEL, density, at=100)
    with pytest.raises(PlanError, match="length must be an integer of 1 or more"):
        Plan.uniform(MODEL, 0.5, at=0)


def test_two_group():
    plan = Plan.two_group(MODEL, [(1, 0), (3, 1)], window=192)
    full = [(layer, head) for layer in range(4) for head in range(2) if plan.rule(layer, head) == FULL]
    assert full == [(1, 0), (3, 1)]
    assert plan.rule(0, 0) == Rule(sink=64, alpha=256, beta=0)
    assert plan.spans(64 * 100 + 1)[0, 0] == 64 + 192 + 1  # the sink, the window, and the rounding to a block
    with pytest.raises(PlanError, match="full_heads names layer 4, KV head 0"):
        Plan.two_group(MODEL, [(4, 0)], window=64)
    with pytest.raises(PlanError, match="window must be an integer of 1 or more"):
        Plan.two_group(MODEL, [], window=0)
    with pytest.raises(PlanError, match=r"window must be an integer of 1 or more, found 64\.5"):
        Plan.two_group(MODEL, [], window=64.5)


def test_predicted_has_one_figure_per_length():
    with pytest.raises(PlanError, match="Predicted: kl has 1 figures for 2 lengths"):
        Predicted(lengths=[1, 2], kl=[0.1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lengths": [2, 1]}, r"lengths must ascend, found \[2, 1\]"),
        ({"lengths": [1, 1]}, "lengths must ascend"),
        ({"lengths": [0]}, "lengths.0: input should be greater than or equal to 1, found 0"),
        ({"lengths": [10**20]}, "lengths.0: input should be less than or equal to 16777216"),
        ({"lengths": [1024], "measured_to": 4096}, "measured_to must be at most the longest length, 1024, found 4096"),
        ({"lengths": [1], "density": [float("nan")]}, "density.0: input should be a finite number, found nan"),
        ({"lengths": [1], "kl": [float("inf")]}, "kl.0: input should be a finite number, found inf"),
        ({"lengths": [1], "density": [-1.0]}, "density must be 0 or more, found -1"),
    ],
)
def test_figures_that_cannot_be_are_refused(fields, message):
    with pytest.raises(PlanError, match=message):
        Predicted(**fields)


def test_models_are_known_by_their_shape_alone():
    config = SimpleNamespace(
        architectures=["LlamaForCausalLM"], num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2,
        hidden_size=48, rope_parameters={"rope_type": "default"},
    )  # fmt: skip
    Plan.dense(SimpleNamespace(config=config)).check(MODEL)


def test_plans_are_made_without_torch():
    code = (
        "import sys, moa.plans.file, moa.plans.hub, moa.plans.importers\n"
        "print({'torch', 'transformers', 'optuna', 'datasets', 'typer', 'scipy'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
