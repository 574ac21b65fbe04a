"""`benchmarks/scored_sinks.py`: which keys a scored sink keeps, and the table on a tiny model."""

import sys
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moa.kernels.reference import attend
from moa.load import load_model
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, first_block


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return import_module("scored_sinks")


@pytest.mark.parametrize("sink", [64, 128])
@pytest.mark.parametrize("n", [320, 397])
def test_the_first_keys_are_the_plans_own_sink(trial, sink, n):
    first = torch.from_numpy(first_block(sink, 200, 32, torch.arange(8).numpy()))
    row, key = torch.arange(n)[:, None], torch.arange(n)
    expected = (key <= row) & ((key < sink) | (key // BLOCK >= first[row // BLOCK]))
    assert torch.equal(trial.visible(first, sink, -key.float()), expected)


@pytest.mark.parametrize("sink", [64, 128])
def test_a_scored_sink_keeps_as_much_and_what_it_drops_stays_dropped(trial, sink):
    n = 64 * 7 + 5
    first = torch.from_numpy(first_block(sink, sink + 64, 0, torch.arange(8).numpy()))
    score = torch.randn(n, generator=torch.Generator().manual_seed(0))
    seen, plain = (trial.visible(first, sink, x) for x in (score, -torch.arange(n).float()))
    assert torch.equal(seen.sum(1), plain.sum(1))
    assert not torch.equal(seen, plain)
    assert seen[:, : trial.PINNED].tril().sum() == plain[:, : trial.PINNED].tril().sum()
    for earlier, later in pairwise(seen):
        old = torch.nonzero(later & ~earlier).flatten()
        assert len(old) <= 1  # the row's own key alone is new
    for row in range(n):
        dropped = BLOCK * int(first[row // BLOCK])
        kept = seen[row, :dropped].nonzero().flatten().tolist()
        best = score[:dropped].clone()
        best[: trial.PINNED] = torch.inf
        if dropped > sink:
            assert set(kept) == set(best.argsort(descending=True)[:sink].tolist())


def test_a_score_does_not_change_when_the_text_goes_on_and_knows_no_position(trial):
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(2, 320, 16, generator=generator)
    half = 8
    angle = torch.arange(320)[:, None] * 1e4 ** (-torch.arange(half) / half)
    cos, sin = (x.repeat(1, 2) for x in (angle.cos(), angle.sin()))
    short = trial.unlike(k[:, :128], cos[:128], sin[:128])
    assert torch.allclose(trial.unlike(k, cos, sin)[:, :128], short, atol=1e-6)
    same = k[:, :1].expand(-1, 320, -1)
    a, b = same[..., :half], same[..., half:]
    turned = torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)
    assert torch.allclose(trial.unlike(turned, cos, sin), -torch.ones(2, 320), atol=1e-5)


def test_attention_under_the_plan_is_the_references(trial, model_folder):
    model, _ = load_model(str(model_folder))
    plan = Plan.uniform(model, 0.4, at=640)
    heads, groups, n, size = plan.model.query_heads, plan.model.kv_heads, 333, plan.model.head_size
    q, k, v = (torch.randn(1, count, n, size) for count in (heads, groups, groups))
    measured = trial.Trial(plan, model.base_model.rotary_emb)
    packed = [x[0].transpose(0, 1) for x in (q, k, v)]
    starts, lengths = torch.tensor([0, n]), torch.zeros(1, dtype=torch.int64)
    full = torch.zeros(groups, 6, dtype=torch.int32), torch.full((groups,), 64, dtype=torch.int32)
    ruled = torch.from_numpy(plan.first_table(0, 6)), torch.from_numpy(plan.rules(0)[0].astype("int32"))
    for kind, (first, sink) in (("dense", full), ("first keys", ruled)):
        measured.kind = kind
        out, _ = measured.attention(SimpleNamespace(layer_idx=0), q, k, v, None, scaling=0.25)
        expected = attend(*packed, first=first, sink=sink, starts=starts, lengths=lengths, scale=0.25)
        torch.testing.assert_close(out[0], expected)
    measured.kind = "unlike keys"
    assert not torch.allclose(out, measured.attention(SimpleNamespace(layer_idx=0), q, k, v, None, scaling=0.25)[0])


def test_it_prints_its_table(trial, model_folder, tmp_path, monkeypatch, capsys):
    model, _ = load_model(str(model_folder))
    Plan.uniform(model, 0.5, at=640).save(tmp_path / "plan.yaml")
    options = ["--length", "640", "--single", "1", "--four", "1", "--windows", "1"]
    monkeypatch.setattr(sys, "argv", ["scored_sinks.py", str(model_folder), str(tmp_path / "plan.yaml"), *options])
    assert trial.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| dense", "| first keys", "| unlike keys"]
    assert rows[1].split(" | ")[4] == "0.0000 |"


def test_a_missing_plan_is_one_line(trial, model_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scored_sinks.py", str(model_folder), "nothing.yaml"])
    assert trial.main() == 2
    assert capsys.readouterr().err.startswith("error:")
