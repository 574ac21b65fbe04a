"""`benchmarks/baselines.py` on a tiny model: every row within the same bytes, going on where it stopped, bad input."""

import json
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from moa.evaluation.tasks import needles
from moa.plans.model import ModelInfo
from moa.plans.plan import FULL
from moa.profiler.profile import Profile
from moa.search.budget import Budget
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, objective

LENGTH, OTHER, LONGEST = 768, 576, 1536
VARIANTS = (("sink_window", 64), ("keydiff_window", 64))
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
    return Profile(info, VARIANTS, cuts, *counts, {"seed": seed}, estimators)


@pytest.fixture
def baselines(monkeypatch):
    """The script."""
    return import_module("baselines")


@pytest.fixture
def run(baselines, save_tiny, tmp_path, monkeypatch):
    """Runs the script with further arguments: exit code."""
    model = save_tiny(tmp_path)
    profile = make_profile(ModelInfo.of(model), 1, {"facts": "effect"})
    profile.save(tmp_path / "unscored.safetensors")
    replace(profile, retrieval=SCORES, retrieval_tokens=10).save(tmp_path / "p.safetensors")
    absolute = dict.fromkeys(("text", "facts"), ABSOLUTE)
    make_profile(profile.model, 2, absolute).save(tmp_path / "a.safetensors")

    def run(*args, profile="p.safetensors", absolute="a.safetensors"):
        given = [tmp_path, tmp_path / profile, "--absolute", tmp_path / absolute, "--results", tmp_path / "out"]
        given += ["--length", LENGTH, "--longest", LONGEST, "--densities", 0.5, 0.25, "--needles", 1, "--windows", 1]
        monkeypatch.setattr(sys, "argv", ["baselines.py", *map(str, given), *args])
        return baselines.main()

    return run


def test_one_table_at_equal_bytes_that_goes_on_where_it_stopped(run, baselines, tmp_path, monkeypatch, capsys):
    out, asked = tmp_path / "out", []

    def stop(*args, ask=needles.ask):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.append(args)
        return ask(*args)

    with monkeypatch.context() as patch:
        patch.setattr("moa.evaluation.tasks.needles.ask", stop)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert [path.name for path in out.iterdir()] == ["baselines.partial"]
    assert len((out / "baselines.partial").read_text().splitlines()) == 3
    assert run() == 0
    assert len((out / "baselines.partial").read_text().splitlines()) == 2 * (1 + 2 * 6)
    found = json.loads((out / "baselines.json").read_text())
    kinds = ["exact", "first keys", "uniform", "two-group", "per-layer", ABSOLUTE]
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == ["dense", *(f"{kind} {density:g}" for density in (0.5, 0.25) for kind in kinds)]
    for name, row in rows.items():
        if name != "dense":
            assert row["kv_bytes"] <= rows[f"exact {name.split()[-1]}"]["kv_bytes"]
            assert row["single"]["questions"] == row["text"]["windows"] == 1
    assert found["run"]["seed"] == 11
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
    plans = dict(baselines.plans(profile, absolute, LENGTH, LONGEST, [0.5]))
    lengths, windows = Lengths((OTHER, LENGTH), (LONGEST,)), ["sink_window"]
    density = Budget("density", 0.5)
    assert plans["exact 0.5"] == choose(profile, [density], lengths=lengths)[0]
    room = plans["exact 0.5"].kv_bytes(LENGTH, dtype="bfloat16")
    budgets = [density, Budget("kv_gb", room / 1e9, LENGTH, dtype="bfloat16")]
    for name, source in (("first keys", profile.only(windows)), (ABSOLUTE, absolute.only(windows))):
        assert plans[f"{name} 0.5"] == choose(source, budgets, lengths=lengths)[0]
    assert plans["exact 0.5"].groups != plans["first keys 0.5"].groups
    block = 64 * profile.model.token_bytes("bfloat16")
    blocks = room // block  # of 4 groups, each of which has 12 when full
    widest = plans["uniform 0.5"]
    assert widest.kv_bytes(LENGTH, dtype="bfloat16") // block == blocks // 4 * 4
    # 12 blocks when full, 4 with the smallest window.
    full = [(layer, head) for layer in (0, 1) for head in (0, 1) if plans["two-group 0.5"].rule(layer, head) == FULL]
    assert sorted(full, key=[(1, 0), (0, 1), (0, 0)].index) == [(1, 0), (0, 1), (0, 0)][: (blocks - 16) // 8]
    assert plans["two-group 0.5"].spans(LENGTH)[1, 1] == 192

    rules = grid(lengths.all, [("sink_window", 64)])
    harms = objective(profile.only(windows), rules, PLAIN, lengths)
    pairs = [(i, j) for i in range(len(rules)) for j in range(len(rules))]
    held, spans = rules.cache_blocks(LENGTH), rules.spans(LONGEST)
    best = min(
        harms[[0, 1, 2, 3], [i, i, j, j]].sum() for i, j in pairs
        if 2 * int(held[i] + held[j]) <= blocks and 2 * (spans[i] + spans[j]) <= 0.5 * 4 * LONGEST
    )  # fmt: skip  # brute force
    found = plans["per-layer 0.5"]
    which = {rule: i for i, rule in enumerate(rules.rules)}
    assert all(found.rule(layer, 0) == found.rule(layer, 1) for layer in (0, 1))
    i, j = (which[found.rule(layer, 0)] for layer in (0, 1))
    assert harms[[0, 1, 2, 3], [i, i, j, j]].sum() == pytest.approx(best, rel=1e-4)


def test_without_absolute_there_is_no_such_row(run, baselines, tmp_path):
    rows = baselines.plans(Profile.load(tmp_path / "p.safetensors"), None, OTHER, LONGEST, [0.7])
    kinds = "exact", "first keys", "uniform", "two-group", "per-layer"
    assert [name for name, _ in rows] == [f"{kind} 0.7" for kind in kinds]


@pytest.mark.parametrize(
    ("args", "files", "says"),
    [
        (["--longest", "100"], {}, "the longest intended length must be an integer from 768"),
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
