"""What is refused by name at start-up."""

import re
import sys
from types import SimpleNamespace

import pytest
import torch
import vllm
from transformers import DeepseekV3Config, LlamaConfig
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.layers.attention.chunked_local_attention import ChunkedLocalAttention
from vllm.model_executor.layers.mamba.mamba_mixer2 import MambaMixer2

import moa_vllm
from moa.plans.errors import MoaError, ModelMismatch, Unsupported
from moa.plans.patterns import Rule
from moa.plans.plan import Plan
from moa_vllm import checks, hook, pages, releases, settings


def config(model: str, **changes):
    made = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=LlamaConfig.from_pretrained(model), original_max_model_len=1024, is_mm_prefix_lm=False,
            dtype=torch.float32,
        ),
        speculative_config=None, kv_transfer_config=None,
        cache_config=SimpleNamespace(
            cache_dtype="auto", block_size=64, sliding_window=None, user_specified_block_size=True
        ),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1, prefill_context_parallel_size=1, pipeline_parallel_size=1,
            enable_dbo=False,
        ),
        scheduler_config=SimpleNamespace(disable_hybrid_kv_cache_manager=False), additional_config={},
    )  # fmt: skip
    for path, value in changes.items():
        *where, name = path.split("__")
        target = made
        for part in where:
            target = getattr(target, part)
        setattr(target, name, value)
    return made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": object()}, "speculative decoding"),
        ({"cache_config__cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype fp8_e4m3"),
        ({"cache_config__cache_dtype": "bfloat16"}, r"--kv-cache-dtype bfloat16 \(only the model's, float32\)"),
        ({"parallel_config__pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"model_config__is_mm_prefix_lm": True}, "a model whose pictures are seen both ways"),
        ({"kv_transfer_config": object()}, "a KV connector"),
        ({"parallel_config__decode_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        ({"parallel_config__enable_dbo": True}, "--enable-dbo"),
        ({"scheduler_config__disable_hybrid_kv_cache_manager": True}, "--disable-hybrid-kv-cache-manager"),
        ({"cache_config__block_size": 128}, r"--block-size 128 \(only 64\)"),
        ({"cache_config__sliding_window": 512}, "a sliding window of the model's own"),
        ({"model_config__original_max_model_len": -1}, "--max-model-len auto"),
    ],
)
def test_settings_of_the_engine(model, plans, changes, message):
    plan = Plan.load(plans["windows"])
    checks.engine(config(model), plan)
    with pytest.raises(Unsupported, match=f"vLLM under a plan: {message}"):
        checks.engine(config(model, **changes), plan)


@pytest.mark.parametrize("version", ["0.31.4", "0.34.0", "1.0.0", "dev"])
def test_other_releases(monkeypatch, version):
    """Where nothing that we hook into is there any more, plans are refused, and nothing else changes."""
    monkeypatch.setattr(vllm, "__version__", version)
    monkeypatch.setattr(VllmConfig, "__init__", VllmConfig.__init__)
    monkeypatch.setitem(sys.modules, "moa_vllm.hook", None)
    moa_vllm.register()
    assert VllmConfig().additional_config == {}
    with pytest.raises(Unsupported, match=rf"vLLM {version}: moa-vllm hooks into 0\.32 to 0\.33"):
        VllmConfig(additional_config={"moa_plan": "x"})


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1rc2+cpu"])
def test_releases_in_the_range(version):
    assert releases.supported(version)


@pytest.mark.parametrize("kind", [MLAAttention, ChunkedLocalAttention, MambaMixer2], ids=lambda x: x.__name__)
def test_other_layers_are_not_served_dense(model, plans, monkeypatch, kind):
    moa_vllm.register()
    asked = config(model, additional_config={"moa_plan": plans["windows"]})
    monkeypatch.setattr(hook, "get_current_vllm_config_or_none", lambda: asked)
    with pytest.raises(Unsupported, match=f"layers must be Attention, found {kind.__name__}"):
        kind(32, 64, scale=1.0)
    asked.additional_config = {}
    assert type(kind.__new__(kind, 32, 64, scale=1.0)) is kind


def test_another_models_plan(model):
    with pytest.raises(ModelMismatch, match="made for another model"):
        checks.engine(config(model), Plan.load("smollm2-135m-instruct-0.25"))


def test_plans_with_reads(model):
    rules = {layer: [Rule(alpha=256, beta=0, read=0.25)] * 2 for layer in range(3)}
    with pytest.raises(Unsupported, match=r"a plan with reads \(layer 0\)"):
        checks.engine(config(model), Plan.from_rules(LlamaConfig.from_pretrained(model), rules))


def test_models_that_cache_latents(model):
    latent = DeepseekV3Config()
    with pytest.raises(Unsupported, match=r"must cache keys and values, found latents \(MLA\)"):
        checks.engine(config(model, model_config__hf_config=latent), Plan.dense(latent))


USUAL = {"attn_type": "decoder", "head_size": 64, "head_size_v": None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alibi_slopes": [1.0]}, "ALiBi"),
        ({"logits_soft_cap": 50.0}, "soft-capping"),
        ({"sinks": object()}, "learned sinks"),
        ({"per_layer_sliding_window": 512}, "a sliding window of the model's own"),
        ({"kv_sharing_target_layer_name": "x"}, "keys shared between layers"),
        ({"attn_type": "encoder_only"}, "attention must be causal, found encoder_only"),
        ({"head_size_v": 32}, "keys and values must have one size"),
    ],
)
def test_kinds_of_attention(given, message):
    checks.layer(USUAL)
    with pytest.raises(Unsupported, match=message):
        checks.layer(USUAL | given)


@pytest.mark.parametrize(
    "given",
    [{"moa_plan": 5}, {"moa_groups": 3}, {"moa_plan": "x", "moa_group": 3}, {"moa_plan": "x", "moa_groups": True}],
)
def test_additional_config(model, given):
    assert settings.of(config(model, additional_config={"other": 1})) is None
    with pytest.raises(MoaError, match="--additional-config takes"):
        settings.of(config(model, additional_config=given))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 32}, r"--block-size 32 \(only 64\)"),
        ({"max_model_len": -1}, "auto"),
        ({"kv_cache_dtype": "bfloat16"}, "only the model's, float32"),
    ],
)
def test_an_engine_does_not_start(engine, settings, message):
    with pytest.raises(Unsupported, match=message):
        engine("windows", **settings)


def test_an_engine_does_not_start_where_pages_have_another_layout(engine, monkeypatch):
    def none_written(*args, **kwargs):
        pass

    pages.check.cache_clear()
    monkeypatch.setattr(pages.ops, "cpu_attn_reshape_and_cache", none_written)
    with pytest.raises(Unsupported, match=r"another layout; --dtype float32 may take another kernel"):
        engine("keydiffs")
    pages.check.cache_clear()


def test_the_length_that_vllm_proposes_fits(engine):
    """An error names a length, and an engine for texts of that length starts."""
    little = {"kv_cache_memory_bytes": 1 << 20, "max_num_batched_tokens": 64}
    with pytest.raises(ValueError, match="maximum model length is") as told:
        engine("windows", max_model_len=2048, **little)
    length = int(re.search(r"maximum model length is (\d+)", str(told.value))[1])
    engine("windows", max_model_len=length, **little)
