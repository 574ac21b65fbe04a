"""benchmarks/reads.py: the plans of each row, and what is claimed of what was measured."""

import json
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from moa.plans.model import ModelInfo


@pytest.fixture
def script():
    return import_module("reads")


@pytest.fixture
def profile(make_profile):
    made = make_profile((512, 1024), shares=(128, 64, 32, 16, 8))
    return replace(made, estimators={"text": "fisher", "facts": "effect"})


def test_plans_keep_the_budgets_of_their_rows_at_every_length(script, profile):
    found = script.plans(profile)
    assert list(found) == [row.name for row in script.BUDGETS]
    for row in script.BUDGETS:
        for n in row.lengths:
            assert found[row.name].read_density(n) <= row.read * (1 + 1e-9)
            assert found[row.name].density(n) == 1 if row.kept == 1 else found[row.name].density(n) <= row.kept
        whole = found[row.name].whole
        assert not whole.reads()
        assert np.array_equal(whole.spans(4096), found[row.name].spans(4096))
    assert {plan.predicted.lengths[-1] for plan in found.values()} == {8192}
    rows = {name: plan for _, name, plan in script.rows_at(found, 4096)}
    for name in ("everything, 1/16 read", "1/4 kept, 1/16 read"):
        twin = rows[f"uniform like {name}"]
        assert rows[name].read_density(4096) <= twin.read_density(4096) <= rows[name].read_density(4096) + 0.01
        assert len({rule for rules in twin.groups.values() for rule in rules}) == 1
    assert rows["uniform like everything, 1/16 read"].density(4096) == 1
    assert twin.density(4096) <= rows["1/4 kept, 1/16 read"].density(4096)
    names = list(rows)
    assert names == [
        "everything, 1/8 read", "uniform like everything, 1/8 read", "everything, 1/16 read",
        "uniform like everything, 1/16 read", "1/4 kept, 1/16 read", "uniform like 1/4 kept, 1/16 read",
        "1/4 kept, 1/16 read: all of it",
    ]  # fmt: skip


def row(name, single, four, perplexity):
    needles = {task: {"rate": rate, "by_question": "1" * round(rate * 50) + "0" * round((1 - rate) * 50)}
               for task, rate in (("single", single), ("four", four))}  # fmt: skip
    return {"row": name, "length": 4096, **needles, "decoded": {"perplexity": perplexity}}


def test_claims_compare_with_dense_or_the_plan_that_reads_all_and_with_uniform_reads(script):
    eighth, quarter = script.BUDGETS[0], script.BUDGETS[3]
    rows = [
        row("dense", 1.0, 0.8, 10.0),
        row(eighth.name, 0.98, 0.7, 10.1),
        row(f"uniform like {eighth.name}", 1.0, 0.75, 10.0),
        row(quarter.name, 0.5, 0.3, 12.0),
        row(f"{quarter.name}: all of it", 0.5, 0.3, 11.0),
        row(f"uniform like {quarter.name}", 0.1, 0.3, 13.0),
    ]
    made = {each["claim"]: each for each in script.claims(rows, [eighth, quarter])}
    assert len(made) == 2 * 4  # none of four needles, of which the dense model finds too few
    values = {name.partition("4,096 tokens: ")[2]: round(each["measured"], 4) for name, each in made.items()
              if name.startswith(eighth.name)}  # fmt: skip
    assert values == {
        "single, of dense, at least": 0.98, "single, ahead of uniform reads": -0.02,
        "perplexity decoded, over dense": 1.01, "perplexity decoded, over uniform reads": 1.01,
    }  # fmt: skip
    failed = [name for name, each in made.items() if not each["holds"]]
    assert failed == [
        f"{eighth.name}, 4,096 tokens: single, ahead of uniform reads",
        f"{eighth.name}, 4,096 tokens: perplexity decoded, over uniform reads",
        f"{quarter.name}, 4,096 tokens: perplexity decoded, over {quarter.name}: all of it",
    ]
    low, high = made[failed[0]]["difference"][1:]
    assert low < -0.02 < high < 0.1  # behind by one question, which may be chance
    low, high = made[f"{quarter.name}, 4,096 tokens: single, ahead of uniform reads"]["difference"][1:]
    assert 0.2 < low < 0.4 < high
    assert made[f"{quarter.name}, 4,096 tokens: single, of {quarter.name}: all of it, at least"]["difference"][0] == 0
    shown = import_module("tables").claimed(list(made.values()))
    assert shown[0] == "| claim | bound | measured | difference | holds |"
    assert f"| {failed[0]} | 0 | -0.020 | -0.02 (" in "\n".join(shown)
    assert f"| {failed[1]} | 1 | 1.010 | - | NO |" in shown


def test_lengths_are_runs_of_their_own_of_the_same_plans(script, profile, save_tiny, tmp_path, monkeypatch, capsys):
    model, asked = save_tiny(tmp_path, max_position_embeddings=8192), []
    replace(profile, model=ModelInfo.of(model)).save(tmp_path / "p.safetensors")

    def compare(model, tokenizer, plans, parts, **how):
        asked.append((parts[0].length, parts[0].counts, {name: plan.fingerprint() for name, plan in plans}))
        return {"rows": [measured(name, parts[0].length) for name in ("dense", *dict(plans))]}

    def run(*options):
        argv = [tmp_path, "--needles", 3, "--results", tmp_path / "out", *options]
        monkeypatch.setattr(sys, "argv", ["reads.py", *map(str, argv)])
        return script.main()

    monkeypatch.setattr(import_module("pilots"), "compare", compare)
    assert run(tmp_path / "p.safetensors", "--length", 2048, "--windows", 2) == 0
    first = json.loads((tmp_path / "out" / "reads-2k.json").read_text())
    assert list(first["plans"]) == [row.name for row in script.BUDGETS]
    (tmp_path / "p.safetensors").unlink()
    assert run(tmp_path / "out" / "reads-2k.json", "--length", 4096) == 0
    second = json.loads((tmp_path / "out" / "reads-4k.json").read_text())
    assert (second["plans"], second["profile"]) == (first["plans"], first["profile"])
    (_, pilot, none), (_, counts, plans), _, (length, _, others) = asked
    assert (pilot, none) == ({"single": 3, "four": 3}, {})
    assert counts == {"single": 3, "four": 3, "text": 2, "decoded": 2}
    assert length == 4096
    assert plans["everything, 1/8 read"] == others["everything, 1/8 read"]
    assert "| everything, 1/8 read |" in (tmp_path / "out" / "reads-4k.md").read_text()
    assert run(tmp_path / "none.json") == 2
    assert "none.json" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"plans": {"some": {}}}')
    assert run(tmp_path / "other.json") == 2
    assert "found no plans of this script for 2,048 tokens" in capsys.readouterr().err


def test_needles_that_dense_surely_loses_are_not_asked_of_plans_and_nothing_is_claimed_of_them(
    script, profile, save_tiny, tmp_path, monkeypatch
):
    model, asked = save_tiny(tmp_path, max_position_embeddings=8192), []
    replace(profile, model=ModelInfo.of(model)).save(tmp_path / "p.safetensors")

    def compare(model, tokenizer, plans, parts, **how):
        asked.append(parts[0].counts)
        rows = [measured(name, parts[0].length) for name in ("dense", *dict(plans))]
        for row in rows:
            row["single"] = row["single"] | {"right": 0, "interval": [0.0, 0.3]}
        return {"rows": rows if not plans else [{k: v for k, v in row.items() if k != "single"} for row in rows]}

    monkeypatch.setattr(import_module("pilots"), "compare", compare)
    argv = [tmp_path, tmp_path / "p.safetensors", "--results", tmp_path, "--length", 8192, "--needles", 25]
    monkeypatch.setattr(sys, "argv", ["reads.py", *map(str, argv)])
    assert script.main() == 0
    assert asked[0] == {"single": 10, "four": 10}
    assert (asked[1]["single"], asked[1]["four"]) == (0, 25)
    found = json.loads((tmp_path / "reads-8k.json").read_text())
    assert not [each for each in found["claims"] if "single" in each["claim"]]
    assert "| 8,192 | single | 0 of 1 | no |" in (tmp_path / "reads-8k.md").read_text()


def measured(name, length):
    """A row as `compare` returns it."""
    task = {"rate": 1.0, "right": 1, "questions": 1, "kept": 1.0, "interval": [0.2, 1.0], "by_question": "1"}
    text = {"perplexity": 10.0, "kl": 0.0}
    return {"row": name, "length": length, "density": 1.0, "kv_bytes": 2**20, "single": task, "four": task,
            "text": text, "decoded": text}  # fmt: skip
