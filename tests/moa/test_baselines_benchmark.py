"""`benchmarks/baselines.py` on a tiny model: every row within the same bytes, going on where it stopped, bad input."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan
from moa.profiler.profile import Profile
from moa.search.budget import Budget
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, objective

LENGTH, OTHER = 768, 576
ABSOLUTE = "first-order-abs"
SCORES = np.array([[0.0, 0.2], [0.7, 0.0]], np.float32)


def make_profile(info, seed, estimators):
    rng, cuts = np.random.default_rng(seed), {}
    for source in ("text", "facts"):
        for n in (OTHER, LENGTH):
            table = np.tril(rng.exponential(1.0, (2, 2, 2, n // 64, n // 64))).astype(np.float32)
            table[..., 0] = 0
            cuts[source, n] = table
    counts = dict.fromkeys(cuts, 9), dict.fromkeys(cuts, 1)
    return Profile(info, (64,), cuts, *counts, {"seed": seed}, estimators, keydiff=(64,))


@pytest.fixture
def baselines(monkeypatch):
    """The script, with lengths and densities that suit a tiny model."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    module = import_module("baselines")
    monkeypatch.setattr(module, "DENSITIES", {OTHER: (0.7,), LENGTH: (0.75, 0.5)})
    return module


@pytest.fixture
def run(baselines, fresh, tokenizer, tmp_path, monkeypatch):
    """Runs the script with further arguments: exit code."""
    model = fresh(vocab_size=len(tokenizer), dtype=torch.float32)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    profile = make_profile(ModelInfo.of(model), 1, {"facts": "effect"})
    profile.save(tmp_path / "unscored.safetensors")
    replace(profile, retrieval=SCORES, retrieval_tokens=10).save(tmp_path / "p.safetensors")
    absolute = dict.fromkeys(("text", "facts"), ABSOLUTE)
    make_profile(profile.model, 2, absolute).save(tmp_path / "a.safetensors")

    def run(*args, profile="p.safetensors", absolute="a.safetensors"):
        given = [tmp_path, tmp_path / profile, "--absolute", tmp_path / absolute, "--results", tmp_path / "out"]
        monkeypatch.setattr(sys, "argv", ["baselines.py", *map(str, given), "--needles", "1", "--windows", "1", *args])
        return baselines.main()

    return run


def test_one_table_at_equal_bytes_that_goes_on_where_it_stopped(run, baselines, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run("--lengths", str(LENGTH)) == 0
    assert sorted(path.name for path in out.iterdir()) == ["baselines.partial"]
    measured = len((out / "baselines.partial").read_text().splitlines())
    assert measured == 2 * (1 + 2 * 6)
    assert run() == 0
    assert len((out / "baselines.partial").read_text().splitlines()) == measured + 2 * (1 + 6)
    found = json.loads((out / "baselines.json").read_text())
    kinds = ["exact", "first keys", "uniform", "two-group", "per-layer", ABSOLUTE]
    for n, densities in baselines.DENSITIES.items():
        rows = {row["row"]: row for row in found["rows"] if row["length"] == n}
        assert list(rows) == ["dense", *(f"{kind} {density:g}" for density in densities for kind in kinds)]
        for name, row in rows.items():
            if name != "dense":
                room = rows[f"uniform {name.split()[-1]}"]["kv_bytes"]
                assert row["kv_bytes"] <= room
                assert row["single"]["questions"] == row["text"]["windows"] == 1
    assert found["absolute"]["estimators"] == dict.fromkeys(("text", "facts"), ABSOLUTE)
    page = (out / "baselines.md").read_text()
    assert all(
        f"| {row['row']} | {row['density']:.3f} | {row['kv_bytes'] / 2**20:.2f} |" in page for row in found["rows"]
    )

    monkeypatch.setattr("moa.evaluation.tasks.needles.ask", None)  # nothing is measured again
    monkeypatch.setattr("moa.evaluation.tasks.text.divergence", None)
    assert run() == 0
    assert (out / "baselines.md").read_text() == page


def test_each_plan_is_what_its_row_says(run, baselines, tmp_path):
    profile, absolute = (Profile.load(tmp_path / f"{name}.safetensors") for name in ("p", "a"))
    plans = dict(baselines.plans(profile, absolute, LENGTH))
    room = plans["uniform 0.75"].kv_bytes(LENGTH, dtype="bfloat16")
    assert plans["uniform 0.75"] == Plan.uniform(profile.model, 0.75, at=LENGTH)
    budget = Budget("kv_gb", room / 1e9, LENGTH, dtype="bfloat16")
    windows = ["sink_window"]
    for name, source in (("exact", profile), ("first keys", profile.only(windows)), (ABSOLUTE, absolute.only(windows))):
        assert plans[f"{name} 0.75"] == choose(source, [budget], lengths=Lengths((LENGTH,)))[0]
    assert plans["exact 0.75"] != plans["first keys 0.75"]
    # 12 blocks when full, 4 with the smallest window; 10 for each of 4 groups when uniform: 3 are full.
    full = {(layer, head) for layer in (0, 1) for head in (0, 1) if plans["two-group 0.75"].rule(layer, head) == FULL}
    assert full == {(1, 0), (0, 1), (0, 0)}
    assert plans["two-group 0.75"].spans(LENGTH)[1, 1] == 192

    rules = grid((LENGTH,), [("sink_window", 64)])
    harms = objective(profile, rules, PLAIN, Lengths((LENGTH,)))
    pairs = [(i, j) for i in range(len(rules)) for j in range(len(rules))]
    blocks = rules.cache_blocks(LENGTH)
    most = room // (64 * profile.model.token_bytes("bfloat16"))
    best = min(
        harms[[0, 1, 2, 3], [i, i, j, j]].sum() for i, j in pairs if 2 * int(blocks[i] + blocks[j]) <= most
    )  # brute force
    found = plans["per-layer 0.75"]
    which = {rules.rule(i): i for i in range(len(rules))}
    assert all(found.rule(layer, 0) == found.rule(layer, 1) for layer in (0, 1))
    i, j = (which[found.rule(layer, 0)] for layer in (0, 1))
    assert harms[[0, 1, 2, 3], [i, i, j, j]].sum() == pytest.approx(best, rel=1e-4)


def test_without_absolute_there_is_no_such_row(run, baselines, tmp_path):
    rows = baselines.plans(Profile.load(tmp_path / "p.safetensors"), None, OTHER)
    kinds = "exact", "first keys", "uniform", "two-group", "per-layer"
    assert [name for name, _ in rows] == [f"{kind} 0.7" for kind in kinds]


@pytest.mark.parametrize(
    ("args", "files", "says"),
    [
        (["--lengths", "100"], {}, "lengths must be of 576, 768, found 100"),
        (
            [],
            {"profile": "unscored.safetensors"},
            "no copy scores; make one with `moa profile MODEL --retrieval-score`",
        ),
        ([], {"absolute": "p.safetensors"}, "made with --estimator first-order-abs"),
        ([], {"profile": "none.safetensors"}, "no profile at"),
        (["--needles", "0", "--windows", "0"], {}, "one of them at least 1"),
    ],
)
def test_bad_input_is_one_line(run, capsys, args, files, says):
    assert run(*args, **files) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1
    assert says in error[0]
