"""benchmarks/reads_baselines.py: other methods' reads as plans, within equal bytes, on moa's own runtime."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from moa.kernels import registry
from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan
from moa.profiler.profile import Profile
from moa.profiler.read_tables import ReadTables
from moa.runtime.applied import apply
from moa.runtime.cache import KVCache

N = 1024


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return import_module("reads_baselines")


def make_profile(info):
    rng, cuts = np.random.default_rng(1), {}
    for source in ("text", "facts"):
        cuts[source, 512] = table = np.tril(rng.exponential(1.0, (2, 2, 2, 8, 8))).astype(np.float32)
        table[..., 0] = 0
    counts = dict.fromkeys(cuts, 9), dict.fromkeys(cuts, 1)
    shares = {cut: rng.exponential(1.0, (2, 3, 2, 2)).astype(np.float32) for cut in cuts}
    reads = ReadTables((64, 32, 16), shares, dict.fromkeys(cuts, 9))
    variants = (("sink_window", 64), ("keydiff_window", 64))
    return Profile(info, variants, cuts, *counts, {"seed": 1}, {"facts": "effect"}, reads=reads)


def test_every_row_is_measured_within_its_budgets_and_goes_on(script, save_tiny, tmp_path, monkeypatch):
    profile = make_profile(ModelInfo.of(save_tiny(tmp_path)))
    profile.save(tmp_path / "p.safetensors")
    options = ["--lengths", N, "--shares", "1/8", "--needles", 1, "--windows", 1, "--results", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["reads_baselines.py", str(tmp_path), str(tmp_path / "p.safetensors"),
                                      *map(str, options)])  # fmt: skip
    before = registry.BACKENDS
    assert script.main() == 0
    assert registry.BACKENDS is before
    found = json.loads((tmp_path / "out" / "reads_baselines.json").read_text())
    rows = {row["row"]: row for row in found["rows"]}
    names = ["searched", "uniform", "quest, no layer whole", "quest as counted there", "unique", "recycled"]
    names += ["searched, half kept", "window, half kept", "keydiff, half kept"]
    assert list(rows) == ["dense", *(f"{name}, 1/8 read" for name in names)]
    assert rows["searched, 1/8 read"]["density"] == 1
    most = rows["searched, half kept, 1/8 read"]["kv_bytes"]
    for name, row in rows.items():
        if name != "dense":
            assert row["read"] <= 1 / 8 + 1e-9 or "counted" in name, name
            assert row["read"] > 0.08, name
            assert row["density"] == 1 or row["kv_bytes"] <= most
            assert row["single"]["questions"] == row["decoded"]["windows"] == 1
    lines = (tmp_path / "out" / "reads_baselines.partial").read_text()
    monkeypatch.setattr("moa.evaluation.tasks.needles.ask", None)  # nothing is measured again
    assert script.main() == 0
    assert (tmp_path / "out" / "reads_baselines.partial").read_text() == lines


def test_quest_reads_its_first_layers_whole_where_bytes_are_left(script, make_profile):
    info = make_profile(layers=30).model
    quarter, eighth = (script.quest(info, share, 4096) for share in (1 / 4, 1 / 8))
    assert (quarter.name, eighth.name) == ("quest", "quest, no layer whole")
    assert [rule for layer in (0, 1) for rule in quarter.plan.groups[layer]] == [FULL] * 4
    assert {rule.read for layer in range(2, 30) for rule in quarter.plan.groups[layer]} == {50 / 256}
    assert 0.24 < quarter.read <= 1 / 4
    assert {rule.read for rules in eighth.plan.groups.values() for rule in rules} == {32 / 256}
    assert 0.12 < eighth.read <= 1 / 8
    free = script.uncounted(info, 1 / 16, 4096)
    assert [rule for layer in (0, 1) for rule in free.plan.groups[layer]] == [FULL] * 4
    assert free.read == pytest.approx(2 / 30 + 28 / 30 * (1 / 16 + 1 / 16), abs=0.003)  # pages, and their summaries


@torch.inference_mode()
@pytest.mark.parametrize("name", ["quest", "unique"])
def test_the_runtime_reads_what_the_prototype_reads(script, fresh, name):
    backend, selector = import_module("reads_parts.backend"), script.SELECTORS[name]
    model, ids = fresh(), torch.randint(1, 60, (1, 412), generator=torch.Generator().manual_seed(2))
    plan = Plan.from_rules(model, {}, defaults=FULL.model_copy(update={"read": 1 / 4}))
    with backend.added({name: backend.by_summaries(selector)}, model.device), apply(model, plan, name):
        cache = KVCache(plan)
        whole = model(ids[:, :400], past_key_values=cache, use_cache=True).logits
        found = model(ids[:, 400:], past_key_values=cache, use_cache=True).logits[0].log_softmax(-1)
    torch.testing.assert_close(whole, model(ids[:, :400]).logits, atol=1e-4, rtol=1e-4)
    reader = import_module("reads_parts.model").Reader(model)
    text = reader.text(ids[0, :400].tolist())
    wanted = reader.rows(text, ids[0, 400:].tolist(), selector, 1 / 4)
    dense = reader.rows(text, ids[0, 400:].tolist(), None)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (found - dense).abs().max() > 1e-3


def test_recycled_reads_all_once_and_then_the_heaviest_and_what_came_since(script):
    chosen = import_module("reads_parts.backend").recycled(4)
    torch.manual_seed(0)
    q, keys, shares = torch.randn(1, 7, 2, 8), torch.randn(1, 107, 8), torch.tensor([3 / 8])
    store = replace(stub(), scratch={})
    lengths = torch.arange(101, 108)
    first = chosen(q[:, :3], keys[:, :103], lengths[:3], shares, store)  # two calls, one sequence
    reads = torch.cat([torch.nn.functional.pad(first, (0, 4)), chosen(q[:, 3:], keys, lengths[3:], shares, store)], 1)[
        0
    ]
    for r, n in enumerate(lengths.tolist()):
        begin = r // 4 * 4
        last = 101 + begin
        if r == begin:
            wanted = set(range(n))
        else:
            mass = (q[0, begin] @ keys[0, :last].T).softmax(-1).sum(0)
            count = int((3 / 8 * 4 * last - last - 6) / 3)
            wanted = {*mass.topk(count).indices.tolist(), *range(last, n)}
        assert set(reads[r].nonzero().flatten().tolist()) == wanted
    assert reads[:4].sum() <= 3 / 8 * 4 * 104


def stub():
    from moa.kernels.store import allocate

    return allocate(np.array([[128]]), 8, torch.float32, "cpu")
