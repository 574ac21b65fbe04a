"""Make small random models of every causal language model that transformers lists."""

import dataclasses
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moa.hf.softmax import traits

VOCABULARY = 61
POSITIONS = 1024

# Every field that a config of some family has for such a thing. Those that a config lacks are left out.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embed_dim", "emb_dim", "dim", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "n_inner", "dff", "ffn_hidden_size"), 96),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 96,
    "kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "sliding_window": 32, "cls_token_id": 1, "sep_token_id": 2,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 16, "mamba_dt_rank": 8, "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 16,
    "n_groups": 1, "chunk_size": 16, "n_mamba_heads": 4, "mamba_d_ssm": 128, "state_size": 16,
    "index_topk": 32, "index_head_dim": 32, "index_n_heads": 2, "query_pre_attn_scalar": 16, "use_mamba_kernels": False,
    "is_decoder": True, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "block_size": 16,
}  # fmt: skip


_LATENT = {"num_key_value_heads": 4}
_ROTARY = {"rotary_dim": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_THREE_AXES = _ROPE | {"mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.25}
_LINEAR = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}
_CONV = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2}
_HYBRID = {
    "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4,
    "mamba_d_state": 8,
}  # fmt: skip
_WHOLE = {"sliding_window": None}
_SLIDING = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
_FULL = {"layer_types": ["full_attention"] * 2}
_CAPPED = _FULL | {"attn_logit_softcapping": 2.0}
_INDEXED = {
    "num_hidden_layers": 2, "layer_types": ["linear_attention", "indexed_attention"], "head_dim": 32, "hc_count": 2,
    "hc_lowrank": 8, "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32,
    "indexer_compress_ratio": 4, "rope_parameters": _THREE_AXES,
}  # fmt: skip

# What single families need in addition, so that their parts fit each other.
FAMILY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note",
         "dots3_note_text", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu"), _LATENT,
    ),
    **dict.fromkeys(("codegen", "gptj"), _ROTARY),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text"), _LINEAR | {"head_dim": 32, "rope_parameters": _THREE_AXES}),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), _LINEAR | {"head_dim": 32, "rope_parameters": _THREE_AXES}),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), _INDEXED),
    "qwen3_next": _LINEAR | {"head_dim": 32},
    "olmo_hybrid": _LINEAR | {"linear_value_head_dim": 32, "linear_num_value_heads": 2},
    "bailing_hybrid": _LINEAR | _LATENT | {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"],
        "layer_types": ["linear_attention", "full_attention"], "linear_head_dim": 16, "linear_num_heads": 4},
    "kimi_linear": _LINEAR | _LATENT | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
        "mlp_layer_types": ["dense", "sparse"], "linear_head_dim": 16, "linear_num_heads": 4, "q_lora_rank": None},
    "bamba": {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 3, "attention_multiplier": 0.25,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention", "mlp", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 32},
    "zamba": _HYBRID | {"n_mamba_heads": 2},
    "zamba2": _HYBRID | {"initializer_range": 0.1, "mamba_d_state": 16, "num_mem_blocks": 1},
    "lfm2": _CONV, "lfm2_moe": _CONV | {"num_dense_layers": 1},
    "lfm3": {"num_hidden_layers": 4, "layer_types": ["conv", "sliding_attention", "full_attention", "conv"]},
    "mimo_v2_flash": {"num_hidden_layers": 3, "v_head_dim": 8, "mlp_layer_types": ["dense"] * 3,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    **dict.fromkeys(
        ("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "gemma3_text", "gemma4_unified_text", "gpt_oss",
         "laguna", "mellum", "ministral", "modernbert-decoder", "olmo3", "smollm3"),
        _SLIDING,
    ),
    **dict.fromkeys(
        ("doge", "kolibri1", "ministral3", "mistral", "mixtral", "moshi", "phi3", "phimoe", "starcoder2"),
        _WHOLE,
    ),
    # In float64 their own attention gives NaN in layers with windows where tokens are padded.
    **dict.fromkeys(("granite_swa", "granitemoe_swa"), _FULL),
    **dict.fromkeys(("gemma2", "vaultgemma"), _CAPPED),
    "gemma3n_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2, "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 6},
    "gemma4_text": _SLIDING | {"global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "num_kv_shared_layers": 0},
    "llama4_text": {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0], "attention_chunk_size": 32,
        "moe_layers": [1], "intermediate_size_mlp": 96, "num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "xmod": {"default_language": "en_XX"},
    "cohere_compass_text": _SLIDING | {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 8},
}  # fmt: skip


def tiny_config(kind: str, **changes: Any) -> PretrainedConfig:
    """Return a config of model type `kind` whose model is small; `changes` are applied last."""
    cls = CONFIG_MAPPING[kind]
    return cls(**_fields(cls) | FAMILY.get(kind, {}) | changes)


def _fields(cls: Any) -> dict[str, Any]:
    """Return small values of the fields that a config, or its text part, has."""
    names = {field.name for field in dataclasses.fields(cls)}
    fields = {name: value for name, value in SMALL.items() if name in names}
    for name in cls.sub_configs:
        if "text" in name or name == "decoder":
            text = getattr(cls(), name)
            fields[name] = {"model_type": text.model_type} | _fields(type(text)) | FAMILY.get(text.model_type, {})
    return fields


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    """Return the model of `tiny_config`, in float64 and evaluation mode."""
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(kind, **changes))
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the others have no float64
    if any(any(traits(module)) for module in model.modules()):
        model.set_attn_implementation("eager")  # the default of transformers 5.17 for Gemma-2 drops its soft-cap
    return model.double().eval()
