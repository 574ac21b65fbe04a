"""benchmarks/tasks.py: which tasks are run, which plans stand beside each other, and how the table shows them."""

import json
import sys
from dataclasses import replace
from importlib import import_module

import pytest
from typer.testing import CliRunner

from moa.cli.main import app
from moa.evaluation.samples import Part


@pytest.fixture
def script():
    return import_module("tasks")


def test_plans_keep_their_budgets_at_the_longest_length_and_the_uniform_window_keeps_as_much(script, make_profile):
    profile = make_profile((512, 1024), shares=(128, 64, 32, 16, 8))
    found = script.plans(replace(profile, estimators={"text": "fisher", "facts": "effect"}), 4096)
    for name, budget in script.BUDGETS.items():
        assert found[name].density(4096) <= budget["density"]
        assert found[name].read_density(4096) <= budget.get("read", 1)
    plan = found["plan 0.25"]
    assert plan.density(2048) <= script.uniform_like(plan, 2048).density(2048) <= plan.density(2048) + 64 / 2048


def test_a_task_that_dense_hardly_solves_is_not_run(script):
    part = Part(2048, {"passkey": 10, "vt": 10})
    assert script.asked(part, {"passkey": {"rate": 0.34}, "vt": {"rate": 0.2}}).counts == {"passkey": 10, "vt": 0}


def test_what_was_not_run_is_listed(script):
    score = {"rate": 0.9, "interval": [0.6, 0.98], "samples": 10}
    rows = [{"length": 2048, "row": name, "passkey": score} for name in ("dense", "plan 0.5")]
    pilots = [{"length": n, "row": "dense", "passkey": score, "vt": score} for n in (2048, 4096)]
    text = script.tasks({"rows": rows, "pilots": pilots})
    assert "| 2,048 | passkey | 10 | 0.90 (0.60 to 0.98) | 0.90 (0.60 to 0.98) |" in text
    assert "vt at 2,048 tokens; passkey and vt at 4,096 tokens." in " ".join(text.split())


def test_a_small_run_writes_rows_pilots_and_plans(script, model_folder, tmp_path, monkeypatch, capsys):
    profile = tmp_path / "p.safetensors"
    options = ["--lengths", "640", "--samples", "1", "--source", "text", "--reads"]
    assert CliRunner().invoke(app, ["profile", str(model_folder), "-o", str(profile), *options]).exit_code == 0
    budgets = {"plan 0.5": {"density": 0.7}, "plan 0.25": {"density": 0.6}, "reading": {"density": 0.6, "read": 0.5}}
    monkeypatch.setattr(script, "BUDGETS", budgets)
    monkeypatch.setattr(script, "SAMPLES", {640: 1})
    given = [str(model_folder), str(profile), "--longest", "640", "--lengths", "640", "--results", str(tmp_path)]
    given += ["--tasks", "passkey", "niah_single_1"]
    monkeypatch.setattr(sys, "argv", ["tasks.py", *given])
    assert script.main() == 0
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert not found["rows"]  # a random model knows no answer
    assert found["pilots"][0]["passkey"]["samples"] == 1
    assert "passkey and niah_single_1 at 640 tokens" in (tmp_path / "tasks.md").read_text()
    monkeypatch.setattr(script, "LEAST", 0)
    assert script.main() == 0
    found = json.loads((tmp_path / "tasks.json").read_text())
    assert [row["row"] for row in found["rows"]] == ["dense", *budgets, script.UNIFORM]
    assert set(found["plans"]) == set(budgets)
    assert found["run"]["seeds"] == [script.PILOT_SEED, 72]
    capsys.readouterr()
