"""`benchmarks/reads_truth.py` on a tiny model: the truth of one group's reads, and going on where it stopped."""

import json
import sys
from importlib import import_module

import pytest
import torch

from moa.evaluation.journal import Journal
from moa.hf.load import load_model
from moa.plans.reading import READ_STEPS
from moa.profiler.calibration import Sample


@pytest.fixture
def script(model_folder, tmp_path, monkeypatch):
    """The script, told to take two samples of 576 tokens."""
    found = import_module("reads_truth")
    monkeypatch.setattr(found, "READ", {576: (64, 32)})
    options = ["--samples", "2", "--lengths", "576", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["reads_truth.py", str(model_folder), *options])
    return found


def test_rows_truths_and_going_on(script, tmp_path, monkeypatch, interrupt):
    interrupt(script, lambda _, share: share == 32)
    monkeypatch.setattr(script, "run_backward", None)  # measured before
    assert script.main() == 0
    found = json.loads((tmp_path / "reads_truth.json").read_text())
    assert [(row["length"], row["share"]) for row in found["rows"]] == [(576, 0.25), (576, 0.125)]
    for row in found["rows"]:
        assert all(x > 0 for x in row["truth"]["kl"])
        assert len(row["truth"]["margin"]) == found["groups"]
        assert -1 <= row["spearman"]["fisher"]["kl"] <= 1
    assert len(found["claims"]) == 2


def test_a_group_that_reads_all_does_no_harm(script, model_folder):
    model, tokenizer = load_model(str(model_folder), dtype="float32", device="cpu")
    sample = script.ended(script.samples(tokenizer, 576, 1, 0)[0])
    bench = script.Bench(model, [sample], Journal(None))
    for name, harm in bench.harm(sample, READ_STEPS).items():
        assert harm == pytest.approx([0.0] * 4, abs=1e-5), name


def test_answers_are_runs_of_positions_and_the_last_ones_count(script):
    assert script.spans((3, 4, 9, 11, 12)) == [(3, 4), (9,), (11, 12)]
    sample = Sample(tuple(range(20)), (2, 3, 5, 9, 10, 15))
    assert script.ended(sample).response == (5, 9, 10, 15)


def test_means_are_over_the_tokens_of_all_answers(script, model_folder):
    bench = script.Bench.__new__(script.Bench)
    bench.groups = [(0, 0), (0, 1)]
    found = [torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]), torch.tensor([5.0]), torch.tensor([6.0])]
    assert bench.means(found) == [3.0, 2.0]
