"""What was measured, found and computed once is what is measured, found and computed now.

The files beside this one were written before the code was last put in order; `MOA_RECORD_GOLDEN=1 pytest tests/golden`
writes them anew, which is right only where a change means to change results, and says so. Plans are compared by bytes.
Of figures from floating-point kernels, which differ between processors, each test says how far they may be off.
"""

import json
import os
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import moa
from moa.cli import main as cli
from moa.hf.load import load_model
from moa.plans.plan import Plan
from moa.profiler.calibration import Sample, Source, whole_text
from moa.profiler.collect import collect
from moa.profiler.profile import Profile
from moa.profiler.settings import Settings
from moa.refining import _tables

HERE = Path(__file__).parent
RECORD = os.environ.get("MOA_RECORD_GOLDEN") == "1"
MADE_BY = ("torch", "environment", "weights", "dtype")  # what a profile says of the place where it was made
LICENSE = (HERE.parents[1] / "LICENSE").read_text()  # a text that no other version of Python changes
SEARCHES = {  # name of the plan: profile and options
    "tiny-0.5": ("tiny", "--max-density", "0.5"),
    "tiny-0.3-to-2048": ("tiny", "--max-density", "0.3", "--max-length", "2048"),
    "tiny-bytes": ("tiny", "--max-kv-gb", "0.0006@1024x2", "--max-density", "0.7@512", "--lengths", "512,1024"),
    "tiny-first-keys": ("tiny", "--max-density", "0.5", "--pattern", "sink_window"),
    "tiny-other-keys": ("tiny", "--max-density", "0.5", "--pattern", "keydiff_window", "--max-length", "1024"),
    "tiny-weights": ("tiny", "--max-density", "0.4", "--source-weight", "known=0", "--max-length", "1024"),
    "tiny-least": ("tiny", "--max-harm", "0.5", "--minimise", "density@1024", "--max-length", "1024"),
    "smollm2-0.5": ("smollm2", "--max-density", "0.5"),
    "smollm2-0.25": ("smollm2", "--max-density", "0.4@512", "--max-density", "0.2", "--max-length", "2048"),
    "smollm2-other-keys": ("smollm2", "--max-density", "0.4", "--lengths", "512", "--pattern", "keydiff_window"),
}


VARIANTS = (("sink_window", 64), ("sink_window", 128), ("keydiff_window", 64))


def passage(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
    ids = tokenizer(LICENSE, add_special_tokens=False)["input_ids"]
    begin = rng.randrange(len(ids) - length)
    return whole_text(ids[begin : begin + length])


SOURCES = [Source("text", passage, "given", "nll"), Source("known", passage, "given", "nll", "effect")]


def tiny(tokenizer: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-6),  # tables are float32
        (torch.float32, 1e-5),  # 8e-7 between the two types where the files were made
    ],
)
def test_the_profile_of_a_tiny_model(tokenizer: Any, tmp_path: Path, dtype: torch.dtype, tolerance: float) -> None:
    settings = Settings((256, 512, 1024), samples=2, seed=3, variants=VARIANTS)
    found = collect(tiny(tokenizer, dtype), tokenizer, settings, SOURCES, tmp_path / "profile.safetensors")
    assert found is not None
    if RECORD and dtype == torch.float64:
        found.save(HERE / "tiny.safetensors")
    same_profile(found, Profile.load(HERE / "tiny.safetensors"), tolerance)


@pytest.mark.full
def test_the_profile_of_the_real_model(real_model: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(real_model), dtype="float32")
    found = collect(
        model, tokenizer, Settings((256, 512), samples=1, seed=3), SOURCES, tmp_path / "profile.safetensors"
    )
    assert found is not None
    if RECORD:
        found.save(HERE / "smollm2.safetensors")
    same_profile(found, Profile.load(HERE / "smollm2.safetensors"), 1e-3)


def same_profile(found: Profile, golden: Profile, tolerance: float) -> None:
    for name in ("model", "variants", "tokens", "samples", "estimators"):
        assert getattr(found, name) == getattr(golden, name)
    mine, its = ({name: said for name, said in p.meta.items() if name not in MADE_BY} for p in (found, golden))
    assert mine == its
    assert list(found.cuts) == list(golden.cuts)
    for cut, table in golden.cuts.items():
        # A row whose cuts take next to nothing away is the difference of equal sums: as far off as the largest effect.
        off = np.abs(found.cuts[cut] - table).max() / np.abs(table).max()
        assert off <= tolerance, f"{cut} is off by {off:.3g} of its largest entry"


@pytest.mark.parametrize("name", SEARCHES)
def test_plans_have_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    profile, *options = SEARCHES[name]
    monkeypatch.setattr(sys, "argv", ["moa", "search", str(HERE / f"{profile}.safetensors"), *options])
    sys.argv += ["-o", str(tmp_path / "plan.yaml")]
    assert cli.main() == 0, capfd.readouterr().err
    found = re.sub(r"date: \d{4}-\d\d-\d\d", "date: 2026-11-28", (tmp_path / "plan.yaml").read_text())
    file = HERE / f"{name}.yaml"
    if RECORD:
        file.write_text(found)
    assert found == file.read_text()


@pytest.mark.parametrize("name", SEARCHES)
def test_plan_files_are_read_and_written_the_same(name: str, tmp_path: Path) -> None:
    file = HERE / f"{name}.yaml"
    Plan.load(file).save(tmp_path / "plan.yaml")
    assert (tmp_path / "plan.yaml").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("tiny", "48efa04284b74518a16f02a771f4bb25220a52a1468b65f0ee52e8e15f2ef33f"),
        ("smollm2", "4d4811eb3ef67ab0d3868069ba08187fbbf8fbbe708e525849a8137f751ae395"),
    ],
)
def test_studies_of_a_profile_keep_their_name(name: str, digest: str) -> None:
    assert _tables(Profile.load(HERE / f"{name}.safetensors")) == digest


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-9),
        (torch.float32, 2e-5),  # 2e-6 between the two types where the files were made
    ],
)
def test_what_tiny_models_compute_under_plans(tokenizer: Any, dtype: torch.dtype, tolerance: float) -> None:
    file = HERE / "evaluations.json"
    found = dict(evaluations(tokenizer, dtype))
    if RECORD and dtype == torch.float64:
        file.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(file.read_text())
    assert list(found) == list(golden)
    for name, row in golden.items():
        scale = dtype.itemsize / 8
        assert found[name].pop("cache_bytes") == row.pop("cache_bytes") * scale, name
        for figure, value in row.items():
            assert found[name][figure] == pytest.approx(value, rel=tolerance, abs=tolerance), (name, figure)


def evaluations(tokenizer: Any, dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    """Figures of every plan for the tiny model, by the cache in three calls and without it."""
    model = tiny(tokenizer, dtype)
    ids = torch.tensor([passage(tokenizer, 900, random.Random(5), False).ids])
    with torch.no_grad():
        dense = model(ids).logits[0].log_softmax(-1)
    for name in SEARCHES:
        if not name.startswith("tiny"):
            continue
        plan = Plan.load(HERE / f"{name}.yaml")
        plan = Plan.from_rules(model, plan.groups, defaults=plan.defaults)
        applied = moa.apply(model, plan, backend="torch")
        cache = moa.KVCache(plan, max_length=900)
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits[0].log_softmax(-1)
            parts = [model(part, past_key_values=cache).logits[0] for part in ids.split([517, 382, 1], 1)]
        applied.remove()
        chunked = torch.cat(parts).log_softmax(-1)
        kl = (dense.exp() * (dense - whole)).sum(-1)
        nll = -chunked[:-1].gather(1, ids[0, 1:, None])
        yield name, {
            "kl": kl.mean().item(), "kl_last": kl[-1].item(), "nll": nll.mean().item(),
            "logits": chunked[-1, :8].tolist(), "cache_bytes": cache.nbytes,
        }  # fmt: skip
