"""The way of a user, from a model whose layers are of several kinds to a plan and its figures."""

import json

import pytest
import torch
from hybrids import FAMILIES, make

import moa
from moa.plans.plan import Plan

OTHERS = {"Gemma2": {"layer_types": ["sliding_attention", "full_attention"]}}
KINDS = {
    "Qwen3_5Text": "linear attention", "KimiLinear": "linear attention, and latents", "Gemma3nText": "shared keys",
    "FalconH1": "states beside keys", "GptOss": "learned sinks",
}  # fmt: skip
"""One family of each kind that goes its own way here; `make test-full` has more of them."""
MORE = ("Bamba", "Lfm3", "Jamba", "Gemma4Text", "Gemma4Sharing", "Gemma2", "Llama4Text", "Zamba")


@pytest.mark.parametrize("family", [*KINDS, *(pytest.param(name, marks=pytest.mark.full) for name in MORE)])
def test_profile_search_apply_doctor_eval_and_bench(family, tokenizer, tmp_path, moa_in):
    if family not in FAMILIES:
        pytest.skip("transformers does not know it")
    sizes = {"vocab_size", *{"vocab_size_per_layer_input"} & FAMILIES[family].keys()}
    model = make(family, **dict.fromkeys(sizes, len(tokenizer)), **OTHERS.get(family, {})).float()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run = lambda *options: moa_in(tmp_path, *options)  # noqa: E731
    code, out, err = run("profile", ".", "-o", "p.safetensors", "--lengths", "512", "--samples", "1")
    assert code == 0, err
    code, out, err = run("search", "p.safetensors", "-o", "plan.yaml", "--max-density", "0.7")
    assert code == 0, err
    plan = Plan.load(tmp_path / "plan.yaml")
    assert plan.model.others or plan.model.hybrid
    assert plan.density(1024) < 0.71
    loaded, _ = moa.load_model(tmp_path)
    cache, ids = moa.KVCache(plan), torch.randint(3, len(tokenizer), (1, 512))
    with torch.no_grad(), moa.apply(loaded, plan) as applied:
        loaded(ids, past_key_values=cache)
        assert "numba" in applied.backend
    assert plan.kv_bytes(512) <= cache.nbytes <= plan.kv_bytes(512) * 9 / 8
    assert (cache.state_bytes > 0) == bool(plan.model.stateful_layers)
    code, out, err = run("doctor", ".", "plan.yaml", "--length", "512")
    assert code == 0, err
    counts = "".join(f", {count} are {kind}" for kind, count in plan.model.others.items())
    assert f"{plan.model.layers} layers, {len(plan.model.ruled_layers)} of them take rules{counts};" in out
    assert "prefill of this plan here: numba" in out
    if plan.model.others:
        shares = (f"{plan.model.ruled_share(n):.0%} at {n:,}" for n in (512, 1024))
        assert "in the layers that take rules: {} tokens, {}".format(*shares) in out
    assert "~" in run("show", "plan.yaml")[1] or "=" in run("show", "plan.yaml")[1]
    code, out, err = run(
        "eval", ".", "--plan", "plan.yaml", "--lengths", "576", "--needles", "1", "--four-needles", "0",
        "--ppl-windows", "1", "-o", "e.json",
    )  # fmt: skip
    assert code == 0, err
    rows = {row["row"]: row for row in json.loads((tmp_path / "e.json").read_text())["rows"]}
    assert {"dense", "plan"} <= rows.keys()
    code, out, err = run(
        "bench", ".", "--plan", "plan.yaml", "--lengths", "512", "--batches", "1", "--repeats", "1", "-o", "b.json"
    )
    assert code == 0, err
    [cell] = json.loads((tmp_path / "b.json").read_text())["lengths"]
    assert cell["length"] == 512
