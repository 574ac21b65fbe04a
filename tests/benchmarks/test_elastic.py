"""What benchmarks/elastic.py asks of plans, of rows that it did not measure."""

import json
import sys

import elastic
import pilots
import pytest
from typer.testing import CliRunner

from moa.cli.main import app
from moa.evaluation.samples import Part
from moa.plans.plan import Plan


def row(name, length, found, times=1.0, questions=40):
    """A row of which the first `found` questions were answered."""
    answers = "1" * found + "0" * (questions - found)
    task = {"right": found, "rate": found / questions, "kept": found / questions, "by_question": answers}
    return {"row": name, "length": length, "single": task, "text": {"perplexity_against_dense": times}}


def rows(quarter=40, alone=40, uniform=10, times=1.0, length=1024):
    return [
        row("dense", length, 40), row("plan 0.25", length, quarter, times),
        row(f"0.25 for {length:,} alone", length, alone), row(elastic.UNIFORM, length, uniform),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("measured", "missed"),
    [
        ({}, []),
        ({"quarter": 38}, ["keeps of dense"]),
        ({"quarter": 30}, ["keeps of dense", "minus the plan for this length alone", "effective context"]),
        ({"times": 1.06}, ["perplexity"]),
    ],
)
def test_what_a_plan_misses_is_said(measured, missed):
    claims = elastic.claims(rows(**measured) + rows(length=4096))
    failed = [c["claim"] for c in claims if not c["holds"]]
    assert [any(what in claim for claim in failed) for what in missed] == [True] * len(missed)
    assert len(failed) == len(missed)


def test_effective_context_ends_where_needles_are_lost():
    found = [*rows(uniform=40), *rows(length=2048), *rows(length=4096)]
    reached = elastic.effective(found)
    assert (reached["dense"], reached["plan 0.25"], reached[elastic.UNIFORM]) == (4096, 4096, 1024)
    assert elastic.claims(found)[-1]["measured"] == 4.0


def test_where_dense_finds_too_little_nothing_is_asked():
    few = [row("dense", 1024, 35), row("plan 0.25", 1024, 0), row(elastic.UNIFORM, 1024, 0)]
    assert not [c for c in elastic.claims(few) if "single" in c["claim"]]


def test_needles_that_dense_surely_loses_are_asked_of_no_plan():
    part = Part(1024, {"single": 25, "four": 25, "text": 2}, elastic.TASKS)
    pilot = {"single": {"interval": [0.0, 0.28]}, "four": {"interval": [0.72, 0.95]}}
    assert pilots.asked_after(part, pilot).counts == {"single": 0, "four": 25, "text": 2}
    text = {"perplexity_against_dense": 1.0}
    unasked = [{"row": name, "length": 1024, "text": text} for name in ("dense", "plan 0.25")]
    assert elastic.effective(unasked) == {}
    assert elastic.depths(unasked) == ["None was asked."]
    assert [c["holds"] for c in elastic.claims(unasked)] == [True]


def test_fewer_contexts_of_each_kind_and_going_on(model_folder, tmp_path, monkeypatch, capsys):
    profile = tmp_path / "p.safetensors"
    options = ["--lengths", "1024", "--samples", "1", "--source", "text"]
    assert CliRunner().invoke(app, ["profile", str(model_folder), "-o", str(profile), *options]).exit_code == 0
    monkeypatch.setattr(pilots, "ANSWERED", 0.0)  # a random model answers nothing
    monkeypatch.setattr(elastic, "PARTS", {1024: Part(1024, {"single": 5, "four": 5, "text": 1}, elastic.TASKS)})
    fixed = [str(model_folder), str(profile), "--longest", "2048", "--results", str(tmp_path), "--contexts", "1"]
    monkeypatch.setattr(sys, "argv", ["elastic.py", *fixed])
    assert elastic.main() == 0
    found = json.loads((tmp_path / "elastic.json").read_text())
    names = ["plan 0.5", "plan 0.25", "0.25 for 1,024 alone", elastic.UNIFORM]
    assert [row["row"] for row in found["rows"]] == ["dense", *names]
    counts = {(row["single"]["questions"], row["four"]["questions"], row["text"]["windows"]) for row in found["rows"]}
    assert counts == {(1, 4, 1)}
    assert [(row["single"]["questions"], row["four"]["questions"]) for row in found["pilots"]] == [(1, 4)]
    assert set(found["plans"]) == {f"{name} at 1024" for name in names}
    assert found["run"]["seed"] == 11
    page = (tmp_path / "elastic.md").read_text()
    assert found["run"]["commit"] in page
    monkeypatch.setattr("moa.evaluation.tasks.needles.ask", None)  # nothing is measured again
    monkeypatch.setattr("moa.evaluation.tasks.text.divergence", None)
    assert elastic.main() == 0
    assert (tmp_path / "elastic.md").read_text() == page
    files = [tmp_path / "half.yaml", tmp_path / "quarter.yaml"]
    for name, file in zip(names, files, strict=False):
        Plan.from_dict(found["plans"][f"{name} at 1024"]).save(file)
    monkeypatch.setattr(elastic, "elastic", None)  # nothing is searched again
    monkeypatch.setattr(sys, "argv", ["elastic.py", *fixed, "--half", str(files[0]), "--quarter", str(files[1])])
    assert elastic.main() == 0
    assert json.loads((tmp_path / "elastic.json").read_text())["rows"] == found["rows"]
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--beyond"])
    assert elastic.main() == 2
    assert "--half and --quarter do not go with it" in capsys.readouterr().err


def test_beyond_are_plans_of_profiles_that_end_at_half_of_the_length_or_before(make_profile):
    profile = make_profile((512, 1024, 2048))
    assert elastic.beyond(profile, 8192, 1024) == []
    names = [name for name, _ in elastic.beyond(profile, 8192, 4096)]
    assert names == [f"plan {d}, profiled to {n}" for n in ("1,024", "2,048") for d in ("0.5", "0.25")]
    (_, plan), *_ = elastic.beyond(profile, 8192, 2048)
    assert plan.predicted.measured_to == 1024
    assert plan.density(8192) <= 0.5
    assert not [name for name, _ in elastic.plans(profile, 8192, 2048, plan, plan) if "profiled" in name]
    rows = [row("dense", n, 40) for n in (1024, 8192)] + [row(names[0], n, 40) for n in (1024, 8192)]
    assert not [claim for claim in elastic.claims(rows) if "effective" in claim["claim"]]  # no row to compare with
