"""benchmarks/tasks.py: which tasks are run, under which plans, and how the table shows them."""

import json
import sys
from importlib import import_module

import pytest
from transformers import AutoConfig

from moa.evaluation.samples import Part
from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan


@pytest.fixture
def script():
    return import_module("tasks")


def test_a_task_that_dense_hardly_solves_is_not_run(script):
    part = Part(2048, {"passkey": 10, "vt": 10})
    assert script.asked(part, {"passkey": {"rate": 0.34}, "vt": {"rate": 0.2}}).counts == {"passkey": 10}


def test_what_was_not_run_is_listed(script):
    score = {"rate": 0.9, "interval": [0.6, 0.98], "samples": 10, "by_sample": [1.0] * 9 + [0.0]}
    rows = [{"length": 2048, "row": name, "passkey": score} for name in ("dense", "plan 0.5")]
    pilots = [{"length": 2048, "row": "dense", "passkey": score, "vt": score}]
    pilots += [{"length": 4096, "row": "dense", "passkey": score}]
    text = script.tasks({"rows": rows, "pilots": pilots})
    assert "| 2,048 | passkey | 10 | 0.90 (0.60 to 0.98) | 0.90 (0.60 to 0.98) |" in text
    assert "vt from 2,048 tokens on; passkey from 4,096 tokens on." in " ".join(text.split())


def test_all_tasks_together_stand_with_their_paired_difference_from_dense(script):
    def score(marks):
        return {"rate": sum(marks) / len(marks), "interval": [0, 1], "samples": len(marks), "by_sample": marks}

    rows = [
        {"length": 2048, "row": "dense", "passkey": score([1.0, 1.0]), "vt": score([0.8, 0.4])},
        {"length": 2048, "row": "plan", "passkey": score([1.0, 0.0]), "vt": score([0.8, 0.2])},
    ]
    both = "| 4 | 0.80 | 0.50, -0.30 (-1.06 to +0.46) |"  # Student's t of 3 degrees: 3.182 * 0.4761 / 2
    assert f"| 2,048 | all tasks {both}" in script.tasks({"rows": rows, "pilots": []})
    assert f"| 2,048 {both}" in import_module("pages_parts.tasks").short({"rows": rows, "pilots": []})


def test_a_task_that_dense_fails_is_not_asked_at_longer_lengths(script, monkeypatch, tmp_path):
    asked = []

    def compare(model, tokenizer, plans, parts, **_):
        asked.append((parts[0].length, [*parts[0].counts], len(plans)))
        rates = {"passkey": 0.5, "vt": 0.1}
        score = {"interval": [0, 1], "samples": 1, "by_sample": [0.5]}
        row = {"length": parts[0].length} | {task: {"rate": rates[task], **score} for task in parts[0].counts}
        return {"rows": [{**row, "row": name} for name in ("dense", *dict(plans))]}

    for name, stand_in in {
        "compare": compare, "uniform_like": lambda *_: None,
        "load_model": lambda *_, **__: (None, None), "provenance": lambda *_, **__: {}, "about": lambda _: "",
        "write": lambda *_: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(script, name, stand_in)
    given = ["model", "--tasks", "passkey", "vt", "--lengths", "2048", "4096", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *given])
    assert script.main() == 0
    assert asked == [
        (2048, ["passkey", "vt"], 0), (2048, ["passkey"], 4), (4096, ["passkey"], 0), (4096, ["passkey"], 4),
    ]  # fmt: skip


def test_a_small_run_writes_rows_pilots_and_plans(script, model_folder, tmp_path, monkeypatch, capsys):
    info = ModelInfo.of(AutoConfig.from_pretrained(model_folder))
    plans = {"half": Plan.uniform(info, 0.7, at=640), "quarter": Plan.uniform(info, 0.6, at=640)}
    plans["reading"] = Plan.from_rules(info, {}, defaults=FULL.reading(128))
    given = [str(model_folder), "--lengths", "640", "--results", str(tmp_path)]
    for name, plan in plans.items():
        plan.save(tmp_path / f"{name}.yaml")
        given += [f"--{name}", str(tmp_path / f"{name}.yaml")]
    monkeypatch.setattr(script, "SAMPLES", {640: 1})
    given += ["--tasks", "passkey", "niah_single_1", "--name", "tasks-640"]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *given])
    assert script.main() == 0
    found = json.loads((tmp_path / "tasks-640.json").read_text())
    assert not found["rows"]  # a random model knows no answer
    assert found["pilots"][0]["passkey"]["samples"] == 1
    assert "passkey and niah_single_1 from 640 tokens on" in (tmp_path / "tasks-640.md").read_text()
    monkeypatch.setattr(script, "LEAST", 0)
    assert script.main() == 0
    found = json.loads((tmp_path / "tasks-640.json").read_text())
    assert [row["row"] for row in found["rows"]] == ["dense", *found["plans"], script.UNIFORM]
    assert [Plan.from_dict(plan) for plan in found["plans"].values()] == list(plans.values())
    assert found["run"]["seeds"] == [script.PILOT_SEED, 72]
    capsys.readouterr()
