"""benchmarks/library.py: shipped plans are measured under their names, with text decoded only where some plan reads."""

import json
import sys
from importlib import import_module

from transformers import AutoConfig

from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan


def test_what_is_asked():
    script = import_module("library")
    assert script.part(2048, None, reads=False).counts == {"single": 40, "four": 40, "text": 4}
    assert script.part(4096, 3, reads=True).counts == {"single": 3, "four": 3, "text": 2, "decoded": 2}
    assert script.part(1024, None, reads=False).tasks is script.PARTS[1024].tasks  # of held-out formats


def test_a_small_run_and_the_evidence_from_it(model_folder, tmp_path, monkeypatch, capsys):
    script, shipped = import_module("library"), import_module("pages_parts.shipped")
    info = ModelInfo.of(AutoConfig.from_pretrained(model_folder))
    plans = {"some": Plan.uniform(info, 0.75, at=256), "reading": Plan.from_rules(info, {}, defaults=FULL.reading(128))}
    for name, plan in plans.items():
        plan.save(tmp_path / f"{name}.yaml")
    part = script.Part(512, {"single": 2, "four": 1, "text": 1}, script.PARTS[1024].tasks)
    monkeypatch.setitem(script.PARTS, 512, part)
    monkeypatch.chdir(tmp_path)
    given = [str(model_folder), "--plans", "some.yaml", "reading.yaml", "--lengths", "512", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["library.py", *given])
    assert script.main() == 0
    found = json.loads((tmp_path / "library.json").read_text())
    assert [row["row"] for row in found["rows"]] == ["dense", "some.yaml", "reading.yaml"]
    assert [row["single"]["questions"] for row in found["rows"]] == [2, 2, 2]
    for plan in plans.values():
        (row,) = shipped.measured(plan, found)
        assert "decoded" in row
        assert "| perplexity / dense, decoded | KL, decoded |" in shipped.evidence([row])
        decoded = row["decoded"]
        assert (
            f"| {decoded['perplexity_against_dense']:.3f} | {decoded['kl']:.4f} |\n" in shipped.evidence([row]) + "\n"
        )
    monkeypatch.setattr(sys, "argv", ["library.py", str(model_folder), "--plans", "none.yaml"])
    assert script.main() == 2
    assert "none.yaml" in capsys.readouterr().err
