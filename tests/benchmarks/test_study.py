"""`benchmarks/study.py` on a tiny model: studies, their check on other text, Optuna alone; nothing is done twice."""

import json
import sys
from importlib import import_module

import optuna
import pytest
from typer.testing import CliRunner

from moa.cli.main import app
from moa.evaluation.samples import Part


def test_it_writes_its_tables_and_goes_on_where_it_was(model_folder, tmp_path, monkeypatch, capsys):
    module = import_module("study")
    monkeypatch.setattr(module, "CHECKED", (Part(576, {"text": 1}), Part(640, {"single": 1, "text": 1})))
    monkeypatch.setattr(module, "DENSITIES", ("0.6", "0.5"))
    monkeypatch.setattr(module, "ALONE", (0.6, 576))
    profile = tmp_path / "p.safetensors"
    options = ["--lengths", "576", "--samples", "1", "--source", "text"]
    assert CliRunner().invoke(app, ["profile", str(model_folder), "-o", str(profile), *options]).exit_code == 0

    def run(*given: str) -> int:
        fixed = [str(model_folder), str(profile), "--trials", "3", "--alone", "5", "--results", str(tmp_path)]
        fixed += ["--longest", "576"]
        monkeypatch.setattr(sys, "argv", ["study.py", *fixed, *given])
        return module.main()

    assert run("--seeds", "1", "--no-check") == 0
    assert not (tmp_path / "study.json").exists()
    assert run("--seeds", "0", "1") == 0
    found = json.loads((tmp_path / "study.json").read_text())
    assert [(s["density"], s["seed"]) for s in found["studies"]] == [("0.6", 0), ("0.5", 0), ("0.6", 1), ("0.5", 1)]
    assert all(sum(s["trials"]) == 3 for s in found["studies"])
    assert {row["row"] for row in found["rows"]} == {
        "dense", "exact 0.6", "exact 0.5", *(f"study {d}, seed {s}" for d in ("0.6", "0.5") for s in (0, 1))
    }  # fmt: skip
    assert all(row["density"] <= 0.6 for row in found["rows"] if row["row"] != "dense" and row["length"] == 576)
    assert [r["seed"] for r in found["random"]] == [0, 1]
    assert ["dense", *found["unseen"]] == [row["row"] for row in found["rows"] if row["length"] == 576]
    assert found["validate_length"] == 576  # the shortest profiled
    assert ["single" in row for row in found["rows"]] == [row["length"] == 640 for row in found["rows"]]
    assert found["run"]["seeds"] == [0, 1]
    assert 1 <= len(found["alone"]["scores"]) <= 5
    assert "Optuna alone, 5 trials at density 0.6" in (tmp_path / "study.md").read_text()

    def no_more(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("moa.validation.Validation.__call__", lambda self, plan: no_more())
    with pytest.raises(AssertionError, match="measured again"):  # Optuna alone is scored against the exact solve
        run("--seeds", "0", "1")
    assert run("--seeds", "0", "1", "--alone", "0") == 0
    capsys.readouterr()


def test_a_replayed_pruner_stops_what_it_would_have_stopped(monkeypatch):
    module = import_module("study")
    study = optuna.create_study()
    scores = [1.0, 1.1, 0.9, 1.2, 3.0, 0.5]  # at every sample alike: the fifth is worse than all before it
    for score in scores:
        trial = study.ask()
        for step in range(4):
            trial.report(score, step)
        study.tell(trial, score)
    assert module.replay(study.trials, module.PRUNERS["none"]) == (1.0, 0.5)
    share, best = module.replay(study.trials, module.PRUNERS["median of the others (default)"])
    assert (share, best) == (21 / 24, 0.5)
