"""`benchmarks/solver.py` at small sizes: default grids and budgets, limits as claims."""

import json
import sys
from importlib import import_module
from types import SimpleNamespace

import numpy as np


def test_solver_sizes_are_searched_as_by_default_and_limits_are_claims(make_profile, monkeypatch, tmp_path, capsys):
    module = import_module("solver")
    path = tmp_path / "p.safetensors"
    profile = make_profile(lengths=(1024, 4096), keydiff=(64,))
    profile.save(path)
    sizes = {"8B": (3, 4), "70B": (4, 4)}
    monkeypatch.setattr(module, "SIZES", sizes)
    monkeypatch.setattr(module, "GIGABYTES", {s: module.GIGABYTES["8B"] * n * m / 256 for s, (n, m) in sizes.items()})
    monkeypatch.setattr(module, "GAP", 0.0)
    large = module.resample(profile, 3, 4)
    assert large.variants == profile.variants
    small, table = (p.cuts["text", 1024].sum((0, 3, 4)).ravel() for p in (profile, large))
    assert table.shape == (12,)
    assert not np.isin(table, small).any()

    def here(command, **_):
        size = command[-1]
        return SimpleNamespace(stdout=f"of HiGHS\n{json.dumps(module.run(size, path))}\n")

    monkeypatch.setattr(module.subprocess, "run", here)
    monkeypatch.setattr(module, "provenance", lambda **_: {"command": "python x.py", "commit": "abc"})
    monkeypatch.setattr(sys, "argv", ["solver.py", str(path), "--results", str(tmp_path)])
    assert module.main() == 0
    found = json.loads((tmp_path / "solver.json").read_text())
    grid = len(module.grid((1024, 4096, 8192, 16384), profile.variants))
    for size in found["sizes"]:
        layers, heads = sizes[size["size"]]
        assert size["rules"] == grid
        assert [len(case["budgets"]) for case in size["cases"]] == [1, 1, 3, 3, 3]
        for case in size["cases"]:
            assert case["gap"] <= 1.1e-4
            assert case["given"] == layers * heads * grid
    assert len(found["claims"]) == 6
    assert "| 8B: proven gap at most | 0 |" in (tmp_path / "solver.md").read_text()
    monkeypatch.setattr(sys, "argv", ["solver.py", str(tmp_path / "none.safetensors")])
    assert module.main() == 2
    assert "no profile at" in capsys.readouterr().err
