"""The way of a user, from a model whose layers are of several kinds to a plan and its figures."""

import json

import pytest
from hybrids import make

from moa.plans.plan import Plan

OTHERS = {"Gemma2": {"layer_types": ["sliding_attention", "full_attention"]}}


@pytest.mark.parametrize(
    "family",
    [
        "Qwen3_5Text",
        "Bamba",
        "KimiLinear",
        *(pytest.param(name, marks=pytest.mark.full) for name in ("Lfm3", "Jamba", "Gemma4Text", "GptOss", "Gemma2")),
    ],
)
def test_profile_search_doctor_eval_and_bench(family, tokenizer, tmp_path, moa_in):
    sizes = {"vocab_size", "vocab_size_per_layer_input" if family == "Gemma4Text" else "vocab_size"}
    model = make(family, **dict.fromkeys(sizes, len(tokenizer)), **OTHERS.get(family, {})).float()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    run = lambda *options: moa_in(tmp_path, *options)  # noqa: E731
    code, out, err = run("profile", ".", "-o", "p.safetensors", "--lengths", "512", "--samples", "1")
    assert code == 0, err
    code, out, err = run("search", "p.safetensors", "-o", "plan.yaml", "--max-density", "0.7")
    assert code == 0, err
    plan = Plan.load(tmp_path / "plan.yaml")
    assert plan.model.others
    assert plan.density(1024) < 0.71
    code, out, err = run("doctor", ".", "plan.yaml", "--length", "512")
    assert code == 0, err
    counts = "".join(f", {count} are {kind}" for kind, count in plan.model.others.items())
    assert f"{plan.model.layers} layers, {len(plan.model.ruled_layers)} of them take rules{counts};" in out
    share = plan.model.ruled_share(512)
    assert (
        f"in the layers that take rules: {share:.0%} at 512 tokens, {plan.model.ruled_share(1024):.0%} at 1,024" in out
    )
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
