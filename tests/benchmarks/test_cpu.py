"""`benchmarks/cpu.py` on a tiny model: every cell, every claim, going on where it stopped, refusing wrong logits."""

import json
import sys
from importlib import import_module

import pytest
import torch

from moa.plans.patterns import KeyDiffWindow, SinkWindow
from moa.plans.plan import Plan, Rule


@pytest.fixture
def benchmark(save_tiny, tmp_path, monkeypatch):
    """The script and a call of it; peak memory is measured in this process, which is faster."""
    model = save_tiny(tmp_path)
    Plan.from_rules(model, {}, defaults=Rule(alpha=256, beta=0.0)).save(tmp_path / "half.yaml")
    Plan.from_rules(model, {}, defaults=KeyDiffWindow(alpha=128, beta=0.0)).save(tmp_path / "quarter.yaml")
    cpu = import_module("cpu")
    monkeypatch.setattr(cpu, "ROUNDS", {"prefill": 2, "decode": 2})
    monkeypatch.setattr(cpu.Bench, "memory", lambda bench, variant, **_: bench.peaks(variant))
    arguments = [str(tmp_path), "--half", str(tmp_path / "half.yaml"), "--quarter", str(tmp_path / "quarter.yaml")]
    arguments += ["--lengths", "128", "320", "--batches", "1", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cpu.py", *arguments])
    return cpu


def test_cells_claims_and_going_on(benchmark, tmp_path, monkeypatch, capsys):
    assert benchmark.main() == 0
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    name = "cpu" if avx512 else "cpu_avx2"
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert [cell["length"] for cell in found["prefill"]] == [128, 320]
    assert [(cell["length"], cell["batch"]) for cell in found["decode"]] == [(128, 1), (128, 2), (320, 1), (320, 2)]
    assert len(found["memory"]) == 5
    assert all(len(times["seconds"]) == 2 for cell in found["prefill"] for times in cell["seconds"].values())
    steps = 2 * benchmark.STEPS
    assert all(len(times["seconds"]) == steps for cell in found["decode"] for times in cell["seconds"].values())
    assert found["run"]["backend"]
    assert found["run"]["commit"]
    plan = Plan.load(tmp_path / "quarter.yaml")
    held = found["decode"][-1]["held"]
    assert held["plan 0.25"] == plan.kv_bytes(320 + benchmark.STEPS + 1, 2)
    assert held["dense, DynamicCache"] == plan.model.dense_kv_bytes(320, 2)
    claims = {claim["claim"]: claim for claim in found["claims"]}
    assert len(claims) == len(found["claims"]) == 2 * 6 + 4 + 1 + 4 * avx512 + 6 + 1 + 2
    allocated = claims["decode, 320 tokens, batch 2: plan 0.25 allocates of StaticCache at most"]
    assert allocated["measured"] == held["plan 0.25"] / held["dense, StaticCache"]
    assert allocated["holds"] == (allocated["measured"] <= 0.28)
    page = (tmp_path / f"{name}.md").read_text()
    assert all(claim in page for claim in claims)

    monkeypatch.setattr(benchmark.timing, "prefill", None)  # nothing is measured again
    monkeypatch.setattr(benchmark.timing, "decode", None)
    assert benchmark.main() == 0
    assert (tmp_path / f"{name}.md").read_text() == page


def test_the_twin_has_the_same_numbers_and_first_keys(benchmark, tmp_path):
    plan = Plan.load(tmp_path / "quarter.yaml")
    twin = benchmark.first_keys(plan)
    assert {rule for rules in twin.groups.values() for rule in rules} == {SinkWindow(alpha=128, beta=0.0)}
    assert twin.kv_bytes(320) == plan.kv_bytes(320)


def test_wrong_logits_are_refused(benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark.timing, "disagreement", lambda *_: float("nan"))
    assert benchmark.main() == 2
    assert "logits must be within" in capsys.readouterr().err
    assert not [*tmp_path.glob("cpu*.json")]
