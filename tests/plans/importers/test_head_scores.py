"""Plans made from scores of heads: DuoAttention's patterns and KVzip's scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from moa.plans.errors import MoaError, PlanError, Unsupported
from moa.plans.importers import IMPORTERS
from moa.plans.model import ModelInfo, Sliding
from moa.plans.patterns import FULL, Rule
from moa.plans.plan import Plan

MODEL = ModelInfo(
    architecture="LlamaForCausalLM", layers=3, query_heads=4, kv_heads=2, head_size=8, rope={"type": "default"}
)
SCORES = [[0.1, 0.9], [0.5, 0.4], [1.2, -0.1]]
NARROW = Rule(sink=128, alpha=128 + 256, beta=0)


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    """A pattern as DuoAttention writes it, by numpy."""
    path = tmp_path / "full_attention_heads.tsv"
    np.savetxt(path, SCORES, delimiter="\t")
    (tmp_path / "config.json").write_text(json.dumps({"sink_size": 128, "recent_size": 256, "lr": 0.02}))
    return path


def full(plan: Plan) -> list[tuple[int, int]]:
    return [(layer, head) for layer in range(3) for head in range(2) if plan.rule(layer, head) == FULL]


def test_a_head_at_the_threshold_has_full_attention(tsv: Path) -> None:
    plan = Plan.import_from("duo_attention", tsv, MODEL)
    assert full(plan) == [(0, 1), (1, 0), (2, 0)]
    assert {rule for rules in plan.groups.values() for rule in rules} == {FULL, NARROW}
    assert full(Plan.import_from("duo_attention", str(tsv), MODEL, threshold=0.95)) == [(2, 0)]
    assert plan.provenance is not None
    assert plan.provenance.note == "imported from duo_attention"


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.75, 0.8, 0.9, 1])
def test_a_sparsity_is_a_quantile_of_the_numbers(tsv: Path, sparsity: float) -> None:
    table = np.clip(SCORES, 0, 1)
    expected = np.argwhere(table >= np.quantile(table, sparsity)) if sparsity < 1 else []
    plan = Plan.import_from("duo_attention", tsv, MODEL, sparsity=sparsity)
    assert full(plan) == [tuple(place) for place in expected]


def test_equal_numbers_do_not_all_count_as_the_quantile(tsv: Path) -> None:
    plan = Plan.import_from("duo_attention", np.ones((3, 2)), MODEL, sparsity=0.5, sink=64, recent=64)
    assert full(plan) == [(1, 1), (2, 0), (2, 1)]


def test_what_the_other_heads_see_is_in_the_config_unless_given(tsv: Path) -> None:
    plan = Plan.import_from("duo_attention", tsv, MODEL, sink=70)
    assert plan.rule(0, 0) == NARROW  # sinks are whole blocks
    plan = Plan.import_from("duo_attention", SCORES, MODEL, sink=64, recent=100)
    assert plan.rule(0, 0) == Rule(alpha=164, beta=0)
    assert int(plan.spans(640)[0, 0]) == 64 + 3 * 64


@pytest.mark.parametrize(("ratio", "kept"), [(1, 6), (0.99, 4), (0.5, 2), (0.34, 1), (0.1, 0)])
def test_kvzip_keeps_the_heads_over_the_score_in_that_place(ratio: float, kept: int) -> None:
    top = [(2, 0), (0, 1), (1, 0), (1, 1), (0, 0), (2, 1)]
    plan = Plan.import_from("kvzip", np.reshape(SCORES, (3, 1, 2, 1)), MODEL, ratio=ratio)
    assert full(plan) == sorted(top[:kept])
    assert {plan.rule(*place) for place in top[kept:]} <= {Rule(alpha=64 + 256, beta=0)}


def test_kvzip_reads_tensors_and_json(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "scores.json"
    path.write_text(json.dumps(SCORES))
    plans = [Plan.import_from("kvzip", source, MODEL, ratio=0.5) for source in (torch.tensor(SCORES), path)]
    assert plans[0] == plans[1]
    for tensor in (torch.tensor(SCORES).bfloat16(), torch.tensor(SCORES).requires_grad_()):
        assert Plan.import_from("kvzip", tensor, MODEL, ratio=0.5) == plans[0]


@pytest.mark.parametrize(
    ("form", "source", "options", "message"),
    [
        ("gptq", SCORES, {}, "format must be one of moa, duo_attention, kvzip, found 'gptq'"),
        ("kvzip", SCORES, {}, "kvzip needs the option ratio"),
        ("kvzip", SCORES, {"ratio": 0}, "ratio must be over 0 and at most 1, found 0"),
        ("kvzip", SCORES, {"ratio": 0.5, "recent": 0}, "recent must be an integer of 1 or more, found 0"),
        (
            "kvzip",
            SCORES,
            {"ratio": 0.5, "sparsity": 1},
            "options of the format kvzip are ratio, sink, recent; found s",
        ),
        ("moa", {}, {"ratio": 1}, "options of the format moa are none; found ratio"),
        ("kvzip", SCORES[:2], {"ratio": 1}, r"scores must be \[3\]\[2\], found shape \[2, 2\]"),
        ("kvzip", [["x", 1]] * 3, {"ratio": 1}, "a table of numbers"),
        ("kvzip", [[float("nan"), 1]] * 3, {"ratio": 1}, "finite"),
        ("duo_attention", SCORES, {}, "give sink and recent, in tokens"),
        ("duo_attention", SCORES, {"sparsity": 2}, "sparsity must be from 0 to 1, found 2"),
        ("duo_attention", SCORES, {"sparsity": 0.5, "threshold": 0.5}, "not both"),
        ("duo_attention", SCORES, {"threshold": float("nan")}, "threshold must be from 0 to 1, found nan"),
        ("duo_attention", SCORES, {"sink": 2.5, "recent": 9}, r"sink must be an integer of 1 or more, found 2\.5"),
        ("duo_attention", "none.tsv", {}, "cannot read none.tsv: No such file"),
        ("duo_attention", "none.json", {}, "cannot read none.json: No such file"),
    ],
)
def test_what_is_refused(form: str, source: object, options: dict[str, float], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.import_from(form, source, MODEL, **options)


def test_broken_files_are_refused(tsv: Path) -> None:
    tsv.with_name("config.json").write_text('{"sink_size": 128}')
    with pytest.raises(PlanError, match="must have sink_size and recent_size"):
        Plan.import_from("duo_attention", tsv, MODEL)
    tsv.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(PlanError, match=r"not UTF-8 text; scores are a \.tsv or \.json file"):
        Plan.import_from("kvzip", tsv, MODEL, ratio=1)


def test_models_with_layers_that_take_no_rules_are_refused() -> None:
    with pytest.raises(Unsupported, match="some of LlamaForCausalLM take no rules"):
        Plan.import_from("kvzip", SCORES, MODEL.model_copy(update={"sliding": Sliding(window=8, layers=(0,))}), ratio=1)


@pytest.mark.parametrize("layers", [1, 3])
def test_one_kv_head_and_one_layer(layers: int) -> None:
    model = MODEL.model_copy(update={"layers": layers, "kv_heads": 1})
    plan = Plan.import_from("kvzip", [[0.5]] * layers, model, ratio=1)
    assert [plan.rule(layer, 0) for layer in range(layers)] == [FULL] * layers


def test_every_importer_is_an_error_of_ours_on_nonsense() -> None:
    for form in IMPORTERS:
        with pytest.raises(MoaError):
            Plan.import_from(form, {}, MODEL)
