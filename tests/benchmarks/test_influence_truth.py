"""`benchmarks/influence_truth.py` on a tiny model: both kinds of sinks, every estimator, going on where it stopped."""

import json
import sys
from importlib import import_module

import pytest
import torch

from moa.evaluation.journal import Journal
from moa.hf.load import load_model
from moa.plans.patterns import PATTERNS


@pytest.fixture
def script(model_folder, tmp_path, monkeypatch):
    """The script, told to take two samples of 576 tokens."""
    options = ["--samples", "2", "--length", "576", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["influence_truth.py", str(model_folder), *options])
    return import_module("influence_truth")


def test_rows_truths_and_going_on(script, tmp_path, monkeypatch, interrupt):
    interrupt(script, lambda kind, *_: kind == "keydiff_window")
    monkeypatch.setattr(script, "run_backward", None)  # measured before
    assert script.main() == 0
    found = json.loads((tmp_path / "influence_truth.json").read_text())
    assert [row["text"] for row in found["rows"]] == [text for *_, text in script.MEASURES]
    for row in found["rows"]:
        told = row["loss"] == "nll"  # a random model gets no answer right, and has no margin to lose
        assert all((-1 <= kind["kl"] <= 1) if told else kind["kl"] is None for kind in row["spearman"].values())
        assert all(kind["margin"] is None for kind in row["spearman"].values())
    first, keydiff = (found["truth"][kind] for kind in ("sink_window", "keydiff_window"))
    assert len(first["kl"]) == len(keydiff["margin"]) == found["groups"]
    assert all(x > 0 for x in first["kl"] + keydiff["kl"])
    assert first != keydiff
    assert found["run"]["seed"] == 11
    assert len(found["claims"]) == 3
    monkeypatch.setattr(script, "answers", None)
    page = (tmp_path / "influence_truth.md").read_text()
    assert script.main() == 0
    assert (tmp_path / "influence_truth.md").read_text() == page


def test_a_cut_that_drops_nothing_does_no_harm_and_margins_are_as_defined(script, model_folder):
    model, tokenizer = load_model(str(model_folder), dtype="float32", device="cpu")
    texts = script.samples(tokenizer, 576, 1, 0)
    cuts = {kind: PATTERNS[kind](sink=64, alpha=1024, beta=0) for kind in script.KINDS}
    bench = script.Bench(model, texts, cuts, Journal(None))
    for kind in script.KINDS:
        assert bench.harm(kind, 0, 1) == pytest.approx({"kl": 0.0, "margin": 0.0}, abs=1e-5)
        assert bench.estimate(0, "fisher", "given", "nll")[kind] == pytest.approx([0.0] * 4, abs=1e-12)
    logits = torch.tensor([[1.0, 3.0, 2.5], [4.0, 0.0, 1.0]])
    assert script.margins(logits, torch.tensor([1, 2])).tolist() == [0.5, -3.0]
