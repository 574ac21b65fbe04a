import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from moa.evaluation.comparison import compare
from moa.evaluation.interval import paired, wilson
from moa.evaluation.journal import Journal
from moa.evaluation.rows import rows_at
from moa.evaluation.samples import Part
from moa.plans.errors import MoaError, ModelMismatch, Unsupported
from moa.plans.plan import FULL, Plan, Rule

SMALL = Part(576, {"text": 1, "single": 2, "four": 1})


def test_rows_samples_and_figures(model, plan, tokenizer):
    before = model(torch.arange(1, 80)[None]).logits
    found = compare(model, tokenizer, [("narrow", plan)], [SMALL, Part(600, {"text": 1, "four": 0})])
    assert json.loads(json.dumps(found)) == found
    rows = found["rows"]
    assert [(r["length"], r["row"]) for r in rows] == [
        (n, name) for n in (576, 600) for name in ("dense", "narrow", "uniform like narrow")
    ]
    dense, narrow, twin = rows[:3]
    assert (dense["density"], dense["text"]["kl"]) == (1.0, 0.0)
    assert narrow["density"] == twin["density"] == plan.density(576)
    assert narrow["kv_bytes"] == plan.kv_bytes(576) < dense["kv_bytes"]
    # This plan is a uniform window, so its twin sees the same and has the same figures.
    assert {**twin, "row": "narrow"} == narrow
    assert narrow["text"]["kl"] > 0
    assert dense["text"]["perplexity"] == pytest.approx(math.exp(np.log(dense["text"]["perplexity_by_quarter"]).mean()))
    assert dense["single"]["questions"] == 2
    assert dense["four"]["questions"] == 4
    assert sum(d["questions"] for d in dense["four"]["by_depth"]) == 4
    assert narrow["cache"]["predicted"] <= narrow["cache"]["allocated"] <= 1.125 * narrow["cache"]["predicted"]
    assert "single" not in rows[3]
    assert torch.equal(model(torch.arange(1, 80)[None]).logits, before)


def test_killed_anywhere_the_same_command_goes_on(model, random_plan, tokenizer, tmp_path):
    path = tmp_path / "eval.jsonl"
    arguments = model, tokenizer, [("mixed", random_plan(model, 0))], [SMALL]
    whole = compare(*arguments, journal=Journal(path))
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 * 4
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    steps = []
    again = compare(
        *arguments,
        journal=Journal(path),
        progress=lambda *step: steps.append(step),
        note=lambda said: pytest.fail(said),
    )
    assert again == whole
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    finished = compare(*arguments, journal=Journal(path), progress=lambda *_: pytest.fail("nothing was left to do"))
    assert finished == whole


def test_a_journal_answers_for_no_other_plan_model_or_seed(fresh, model, plan, tokenizer, tmp_path):
    path = tmp_path / "eval.jsonl"
    part = Part(512, {"single": 1})
    other = Plan.from_rules(model, {}, defaults=Rule(alpha=192, beta=0.0))
    runs = [
        ((model, tokenizer, [("p", plan)], [part]), {}, 2),
        ((model, tokenizer, [("p", other)], [part]), {}, 1),
        ((model, tokenizer, [("p", plan)], [part]), {"seed": 1}, 2),
        ((model, tokenizer, [("p", plan)], [part]), {"backend": "reference"}, 1),
        ((fresh(vocab_size=len(tokenizer), dtype=torch.float32, seed=1), tokenizer, [("p", plan)], [part]), {}, 2),
    ]
    lines = 0
    for arguments, options, new in runs:
        notes = []
        compare(*arguments, uniform=False, journal=Journal(path), note=notes.append, **options)
        said = [f"{path}: {new} results of these rows and samples are of another model, plan, seed"] if lines else []
        assert [note[: len(begin)] for note, begin in zip(notes, said, strict=True)] == said
        lines += new
        assert len(path.read_text().splitlines()) == lines


def test_a_plan_by_two_names_is_measured_once(model, plan, tokenizer, tmp_path):
    path, plans, steps = tmp_path / "eval.jsonl", [("one", plan), ("two", plan)], []
    found = compare(
        model, tokenizer, plans, [SMALL], journal=Journal(path), progress=lambda *step: steps.append(step)
    )  # fmt: skip
    first, *others = [row for row in found["rows"] if row["row"] != "dense"]
    assert [{**row, "row": "one"} for row in others] == [first] * 3  # its uniform twins too, as it is one
    assert len(path.read_text().splitlines()) == 2 * 4
    assert steps[-1][1] == 2 * 4 * 576


def test_a_foreign_journal_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "eval.jsonl"
    path.write_text('{"text": "my data"}\n')
    with pytest.raises(MoaError, match="line 1: not a finished result"):
        Journal(path)
    assert path.read_text() == '{"text": "my data"}\n'


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (Part(4096, {"text": 1}), "length 4096 is over the model's maximum of 2048 tokens"),
        (Part(100, {"text": 1}), "lengths must be at least 256 tokens, found 100"),
        (Part(512, {"single": 0}), "at least 1; found none"),
        (Part(512, {}), "at least 1; found none"),
        (Part(512, {"single": -1, "text": 1}), r"one needle \(-1\), windows of held-out text \(1\)"),
        (Part(512, {"riddles": 1}), "tasks must be of text, .*, single, four, .*, found 'riddles'"),
        (Part(1024, {"text": 10_000}), "of 1024 tokens, 10000 were asked for"),
    ],
)
def test_bad_parts(model, tokenizer, part, says):
    with pytest.raises(MoaError, match=says):
        compare(model, tokenizer, [], [part])


def test_bad_plans_and_backends(fresh, model, plan, tokenizer):
    with pytest.raises(MoaError, match="distinct names other than dense, found dense"):
        compare(model, tokenizer, [("dense", plan)], [SMALL])
    with pytest.raises(ModelMismatch, match="layers: 2 against 3"):
        compare(fresh(num_hidden_layers=3), tokenizer, [("p", plan)], [SMALL])
    with pytest.raises(Unsupported, match="unknown back-end 'fast'"):
        compare(model, tokenizer, [("p", plan)], [SMALL], backend="fast")


@pytest.mark.parametrize(("right", "count"), [(0, 20), (81, 263), (5, 5), (1, 1)])
def test_wilson_against_scipy(right, count):
    assert wilson(right, count) == pytest.approx(
        tuple(binomtest(right, count).proportion_ci(method="wilson")), abs=1e-6
    )


@pytest.mark.parametrize(
    ("both", "first", "second", "neither", "expected"),
    [(36, 12, 2, 0, (0.2, 0.0569, 0.3404)), (54, 0, 0, 0, (0.0, -0.0664, 0.0664))],
)
def test_paired_against_the_published_examples(both, first, second, neither, expected):
    """Newcombe, Statistics in Medicine 17 (1998), table II, method 10."""
    a = [True] * both + [True] * first + [False] * (second + neither)
    b = [True] * both + [False] * first + [True] * second + [False] * neither
    assert paired(a, b) == pytest.approx(expected, abs=1e-4)
    assert paired(b, a)[1:] == pytest.approx((-expected[2], -expected[1]), abs=1e-4)


@pytest.mark.parametrize("length", [600, 1024])
def test_a_twin_reads_at_least_what_the_plan_reads_and_a_step_less_would_not(model, length):
    few, most = (Rule(alpha=0, beta=1, read=read) for read in (1 / 8, 1 / 2))
    plan = Plan.from_rules(model, {0: [few, most], 1: [few, Rule(alpha=200, beta=0.25)]})
    _, _, twin = rows_at([("p", plan)], length, True, None)
    rule = twin.plan.defaults
    assert plan.density(length) <= twin.plan.density(length) < plan.density(length) + 64 / length
    assert twin.plan.read_density(length) >= plan.read_density(length) - 1e-9
    less = Plan.from_rules(model, {}, defaults=rule.model_copy(update={"read": rule.read - 1 / 256}))
    assert less.read_density(length) < plan.read_density(length)
    assert twin.plan.read_density(length) < plan.read_density(length) + 0.02


@pytest.mark.parametrize("length", [512, 600, 1024, 1000])
def test_a_twin_keeps_at_least_what_the_plan_keeps_and_less_than_a_block_more(model, length):
    for full in range(5):
        rules = [FULL] * full + [Rule(alpha=128, beta=0)] * (4 - full)
        plan = Plan.from_rules(model, {0: rules[:2], 1: rules[2:]})
        _, _, twin = rows_at([("p", plan)], length, True, None)
        assert plan.density(length) <= twin.plan.density(length) < plan.density(length) + 64 / length
