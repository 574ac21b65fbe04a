"""`benchmarks/models.py` on 24 families: a new release of transformers shows at once what changed."""

from importlib import import_module

import pytest

WORKS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma3_text", "gemma4_text", "gpt2", "gpt_neox", "opt",
    "mixtral", "granite", "cohere2", "olmo3", "modernbert-decoder", "qwen3_5_text", "lfm2", "nemotron_h", "llama4_text",
)  # fmt: skip
REFUSED = {"gemma2": "soft-caps", "gpt_oss": "sinks", "deepseek_v3": "latent", "falcon_h1": "hybrid"}


@pytest.fixture
def module(monkeypatch):
    return import_module("models")


@pytest.mark.full
def test_twenty_four_families(module):
    results = dict(module.sweep([*WORKS, *REFUSED]))
    for kind in WORKS:
        assert results[kind]["status"] == "works", (kind, results[kind])
    for kind, why in REFUSED.items():
        assert results[kind]["status"] == "refused", (kind, results[kind])
        assert why in results[kind]["why"]


def test_the_page(module):
    results = {
        "a": {"status": "works", "difference": 2e-15},
        "b": {"status": "refused", "why": "b has x|y"},
        "c": {"status": "wrong", "why": "chunks"},
    }
    run = import_module("provenance").provenance()
    page = import_module("pages_parts.others").models({"run": run, "models": results})
    assert "lists 3 causal language models" in page
    assert "(WRONG: 1, works: 1, refused by name: 1)" in page
    assert "| `a` | works | largest difference 2e-15 |" in page
    assert "| `b` | refused by name | b has x/y |" in page
