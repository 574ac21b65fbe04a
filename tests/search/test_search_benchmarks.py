"""The benchmarks of the search, without a model: what they write, and that they go on where they were stopped."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from moa.search.cost import Costs

PLACE = {"device": "abacus", "threads": 1, "backend": "torch", "dtype": "float32"}


def script(name):
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cost_model(make_profile, monkeypatch, tmp_path):
    """Runs benchmarks/cost_model.py on a model that takes 1.1 times what the costs say; returns calls made, output."""
    module = script("cost_model")
    profile = make_profile(lengths=(512, 2048))
    profile.save(tmp_path / "p.safetensors")
    terms = {
        "decode": {"step": 20.0, "sequence": 1.5, "block": 0.5},
        "prefill": {"step": 30.0, "token": 0.1, "whole": 2e-5, "windowed": 4e-5, "chunk": 0.01},
    }
    costs = Costs(model=profile.model, environment=PLACE, terms=terms, error={"decode": 0, "prefill": 0}, measured=())
    (tmp_path / "costs.json").write_text(costs.model_dump_json())
    calls, stop_after = [], [10**6]

    def run(plan, work):
        if len(calls) == stop_after[0]:
            raise KeyboardInterrupt
        calls.append(work)
        return [1.1 * costs.predict(plan, work)]

    monkeypatch.setattr("moa.measuring.load_model", lambda *_, **__: (profile.model, None))
    monkeypatch.setattr("moa.measuring.environment", lambda *_: PLACE)
    monkeypatch.setattr("moa.measuring.runner", lambda *_: run)

    def main(*args, stop=10**6):
        stop_after[0] = stop
        given = ["model", tmp_path / "p.safetensors", tmp_path / "costs.json", "--output", tmp_path / "out", *args]
        monkeypatch.setattr(sys, "argv", ["cost_model.py", *map(str, given)])
        module.main()

    return main, calls, tmp_path / "out"


def test_cost_model(cost_model, capsys):
    main, calls, out = cost_model
    args = ("--decode-lengths", "512", "2048", "--prefill-lengths", "512", "8192", "--rounds", "2")
    with pytest.raises(KeyboardInterrupt):
        main(*args, stop=20)
    main(*args)
    assert len(calls) == 2 * (12 * 2 * 2 + 6 + 3)
    before = calls.copy()
    main(*args)
    assert calls == before
    found = json.loads(out.with_suffix(".json").read_text())
    assert len(found["rows"]) == 12 * 2 * 2 + 6 + 3
    predicted = {n: [row["predicted"] for row in found["rows"] if row["kind"] == "prefill" and row["length"] == n]
                 for n in (512, 8192)}  # fmt: skip
    assert len(set(predicted[8192])) == 3
    assert len(set(predicted[512])) > 1
    for kind in ("decode", "prefill"):
        assert found[kind]["error"] == pytest.approx(1 - 1 / 1.1)
        assert found[kind]["rank"] == pytest.approx(1)
        assert not found[kind]["kept"]
    assert "decode: NOT kept: median absolute error 9.1%" in capsys.readouterr().out
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_solver_sizes_have_three_budgets_and_a_resampled_profile(make_profile, monkeypatch, tmp_path):
    module = script("solver")
    monkeypatch.setitem(module.SIZES, "8B", (3, 4))
    monkeypatch.setitem(module.GIGABYTES, "8B", module.GIGABYTES["8B"] * 12 / 256)
    make_profile(lengths=(1024, 4096)).save(tmp_path / "p.safetensors")
    found = module.run("8B", str(tmp_path / "p.safetensors"))
    assert found["rules"] >= 200
    assert [len(case["budgets"]) for case in found["cases"]] == [3, 3, 3]
    for case in found["cases"]:
        assert case["gap"] <= 1.1e-4
        assert case["given"] == 12 * found["rules"]
    found["peak_bytes"] = 2e9
    assert "8B NOT kept: gap" in module.markdown([found])
