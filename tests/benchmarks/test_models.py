"""`benchmarks/models.py` on 27 families: a new release of transformers shows at once what changed."""

from importlib import import_module

import pytest

WORKS = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma3_text", "gemma4_text", "gpt2", "gpt_neox", "opt",
    "mixtral", "granite", "cohere2", "olmo3", "modernbert-decoder", "qwen3_5_text", "lfm2", "nemotron_h", "llama4_text",
    "gemma2", "gpt_oss", "falcon_h1", "gemma3n_text", "deepseek_v3", "kimi_linear", "zamba2",
)  # fmt: skip
REFUSED = {"deepseek_v32": "is indexed_attention"}


@pytest.fixture
def module(monkeypatch):
    return import_module("models")


@pytest.mark.full
def test_families_work_or_are_refused(module):
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
    share = {"layers": 4, "others": {"conv": 3}, "kv_bytes": {"1": 2**30, "2": 2**31}, "share": {"1": 0.571, "2": 1.0}}
    run = import_module("provenance").provenance()
    page = import_module("pages_parts.others").models({"run": run, "models": results, "shares": {"a": share}})
    assert "lists 3 causal language models" in page
    assert "(WRONG: 1, works: 1, refused by name: 1)" in page
    assert "| `a` | works | largest difference 2e-15 |" in page
    assert "| `b` | refused by name | b has x/y |" in page
    assert "| `a` | 1 of 4 | 3 conv | 1.00 GiB, 57% | 2.00 GiB, 100% |" in page


def test_what_a_plan_can_reach(module):
    share = import_module("models_parts.share").share
    assert share("llama") is None  # all of it
    found = share("gemma3_text")
    assert found["others"] == {"sliding_attention": 22}
    token = 4 * 2 * 256 * 2  # heads, key and value, head size, bytes
    assert found["kv_bytes"][32768] == token * (4 * 32768 + 22 * 4095)
    assert found["share"][32768] == pytest.approx(4 * 32768 / (4 * 32768 + 22 * 4095))
