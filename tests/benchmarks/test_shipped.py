"""Shipped plans stand with the evidence that is theirs, by fingerprint, or are said not to be measured."""

import json
from importlib import import_module

import pytest

from moa.plans.plan import Plan

pages = import_module("pages")
shipped = import_module("pages_parts.shipped")
PAGE = shipped.LIBRARY / "README.md"
PATHS = sorted(shipped.LIBRARY.glob("*.yaml"))


def row(name, length, right):
    """A row as `moa.evaluation.comparison.compare` writes it, of 40 questions."""
    rate = right / 40
    task = {"right": right, "questions": 40, "rate": rate, "interval": [rate - 0.1, rate],
            "minus_dense": [rate - 1, rate - 1.1, rate - 0.9]}  # fmt: skip
    text = {"perplexity_against_dense": 1.03, "kl": 0.02}
    return {"row": name, "length": length, "density": 0.25, "single": task, "text": text}


@pytest.fixture
def figures():
    """A result file with rows of the first shipped plan, at two lengths, and of a window beside it."""
    plan = Plan.load(PATHS[0])
    plans = {
        "plan 0.25 at 1024": plan,
        "plan 0.25 at 2048": plan,
        "uniform at 1024": Plan.uniform(plan.model, 1, at=64),
    }
    rows = [row("dense", 1024, 40), row("plan 0.25", 1024, 36), row("plan 0.25", 2048, 30), row("uniform", 1024, 5)]
    run = {
        "command": "python x.py", "commit": "abc123", "date": "2026-11-28", "device": "abacus", "threads": 1, "seed": 11
    }  # fmt: skip
    found = {"run": run, "rows": rows, "plans": {k: p.to_dict() for k, p in plans.items()}}
    return json.loads(json.dumps(found))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_plan_is_on_the_page_with_its_own_fingerprint(path):
    section = PAGE.read_text().partition(f"### {path.stem}\n")[2].partition("###")[0]
    assert f"`{Plan.load(path).fingerprint()}`" in section
    assert ("Data: [" in section) != (shipped.NOTHING in section)


def test_the_page_is_stale_once_a_plan_has_changed(tmp_path, monkeypatch):
    for path in PATHS:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(shipped, "LIBRARY", tmp_path)
    assert pages.written(PAGE) == PAGE.read_text()
    changed = tmp_path / PATHS[1].name
    plan = Plan.load(changed)
    Plan.uniform(plan.model, 0.5, at=2048).model_copy(update={"predicted": plan.predicted}).save(changed)
    assert pages.written(PAGE) != PAGE.read_text()


def test_a_plan_stands_with_the_rows_that_ran_under_it_and_no_others(figures):
    text = shipped.section(PATHS[0], {"elastic": figures})
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(table) == 3
    assert table[1] == (
        "| 1,024 | 0.250 | 36 of 40, 0.90 (0.80 to 0.90) | -0.10 (-0.20 to +0.00) | 1.030 | 0.0200 |"
    )  # fmt: skip
    assert table[2].startswith("| 2,048 | 0.250 | 30 of 40")
    assert "at commit abc123 (2026-11-28, abacus, 1 thread, seed 11)" in " ".join(text.split())
    assert shipped.NOTHING not in text
    assert shipped.section(PATHS[1], {"elastic": figures}).endswith(shipped.NOTHING)


def test_what_a_density_means_is_taken_from_the_plan():
    plan = Plan.load(PATHS[0])
    predicted = plan.predicted.model_copy(
        update={"lengths": (1024, 4096), "density": (0.5, 0.2), "kv_bytes": (1, 2), "harm": (0, 0), "measured_to": 2048}
    )
    told = shipped.keeps(plan.model_copy(update={"predicted": predicted}))
    assert told == (
        "Density 0.2 holds at 4,096 tokens, the longest text that the plan is for, profiled to 2,048; of shorter ones "
        "it keeps more: 0.50 of 1,024 tokens."
    )
    assert shipped.keeps(plan) in " ".join(PAGE.read_text().split())


def test_evidence_of_a_plan_by_name_alone_and_of_two_files(figures):
    plain = figures | {"plans": {"plan 0.25": figures["plans"]["plan 0.25 at 1024"]}}
    text = shipped.section(PATHS[0], {"baselines": plain, "study": {"rows": figures["rows"]}})
    assert text.count("Data: [") == 1
    assert "[baselines.json]" in text
