"""Small random models whose layers are of several kinds, and an oracle apart from the runtime: masks written out."""

import sys
from functools import cache
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from moa.plans.model import ModelInfo
from moa.plans.patterns import Rule
from moa.plans.plan import Plan

VOCABULARY = 61

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 1024, "initializer_range": 0.2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
OTHERWISE_NAMED = ("vocab_size", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id")
"""The only fields of `SHAPE` that GPT-BigCode's config calls so."""
TWO = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "full_attention"]}
DELTA = TWO | {
    "head_dim": 32, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
}  # fmt: skip
MAMBA2 = {
    "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 16,
    "mamba_expand": 2,
}  # fmt: skip
THREE_AXES = {
    "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True,
    "partial_rotary_factor": 0.25,
}  # fmt: skip

TIED = {
    "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 4,
    "mamba_d_state": 8, "head_dim": 32,
}  # fmt: skip
LATENT = {
    "num_hidden_layers": 2, "num_key_value_heads": 4, "q_lora_rank": 20, "kv_lora_rank": 24, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "moe_intermediate_size": 32,
}  # fmt: skip

_FIELDS: dict[str, dict[str, Any]] = {
    "Qwen3_5Text": DELTA | {"rope_parameters": THREE_AXES},
    "Qwen3_5MoeText": DELTA | EXPERTS | {"rope_parameters": THREE_AXES},
    "Qwen3Next": DELTA | EXPERTS,
    "Lfm2": {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    },
    "Lfm2Moe": EXPERTS | {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1,
    },
    "Lfm3": {
        "num_hidden_layers": 3, "layer_types": ["conv", "sliding_attention", "full_attention"], "head_dim": 16,
        "sliding_window": 32,
    },
    "OlmoHybrid": TWO | {
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 32,
    },
    "Bamba": MAMBA2 | {"num_hidden_layers": 3, "attn_layer_indices": [1]},
    "GraniteMoeHybrid": MAMBA2 | TWO | {
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32, "attention_multiplier": 0.25,
    },
    "FalconH1": MAMBA2 | {
        "num_hidden_layers": 2, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5, "attention_out_multiplier": 2.0,
        "key_multiplier": 0.5,
    },
    "Zamba": TIED | {"n_mamba_heads": 2, "initializer_range": 0.1},
    "Zamba2": TIED | {"n_mamba_heads": 4, "mamba_d_state": 16, "chunk_size": 16, "num_mem_blocks": 1},
    "Jamba": {
        "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 8, "mamba_dt_rank": 8,
    },
    "NemotronH": {
        "layers_block_type": ["linear_attention", "full_attention", "mlp", "full_attention"], "head_dim": 16,
        "mamba_num_heads": 4, "mamba_head_dim": 32, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16,
    },
    "Llama4Text": {
        "num_hidden_layers": 4, "head_dim": 16, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0, 1, 0],
        "attention_chunk_size": 32, "moe_layers": [1], "num_local_experts": 4, "num_experts_per_tok": 1,
        "floor_scale": 16, "attn_scale": 0.5,
    },
    "Gemma4Text": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16,
        "global_head_dim": 32, "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 32,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    },
    "Gemma4Sharing": {
        "num_hidden_layers": 6, "layer_types": ["full_attention", "sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 3, "head_dim": 16, "global_head_dim": 32, "num_key_value_heads": 2,
        "num_global_key_value_heads": None, "sliding_window": 32, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY, "use_double_wide_mlp": True,
    },
    "Gemma3nText": {
        "num_hidden_layers": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
        + ["full_attention"] * 2, "num_kv_shared_layers": 3, "head_dim": 16, "sliding_window": 32, "laurel_rank": 8,
        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY,
    },
    "GptOss": {
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "head_dim": 16, "sliding_window": 32, "num_local_experts": 4, "num_experts_per_tok": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "GraniteSWA": {
        "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "sliding_window": 32,
        "attention_multiplier": 0.25,
    },
    "Gemma2": {
        "num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "head_dim": 16, "sliding_window": 32,
        "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0,
    },
    "DeepseekV2": LATENT | ROUTED | {"topk_method": "greedy"},
    "DeepseekV3": LATENT | ROUTED,
    "Glm4MoeLite": LATENT | {name: value for name, value in ROUTED.items() if name != "first_k_dense_replace"},
    "MiniCPM3": LATENT | {"dim_model_base": 64, "scale_depth": None, "v_head_dim": 28},  # wider than keys
    "LongcatFlash": LATENT | {
        "head_dim": 8,
        "n_routed_experts": 4, "zero_expert_num": 2, "moe_topk": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 32,
    },
    "KimiLinear": LATENT | TWO | {
        "mlp_layer_types": ["dense", "sparse", "dense"], "num_local_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 32, "linear_head_dim": 16, "linear_num_heads": 4, "q_lora_rank": None,
    },
    "GPTBigCode": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "n_inner": 48},
}  # fmt: skip
CONFIGS = {"Gemma4Sharing": "Gemma4Text"}
"""Families whose config has another name."""
FAMILIES = {
    name: fields for name, fields in _FIELDS.items() if hasattr(transformers, f"{CONFIGS.get(name, name)}Config")
}
"""The fields of a family's config that differ from `SHAPE`; transformers 5.17 does not know all families."""

SINGLE = {"GraniteSWA": 1e-5, "Gemma2": 1e-5}
"""How far the attention of a family's own code is off in float64, since a part of it is in float32.

There a mask in float64 becomes -inf, and rows that are padding NaN, which the next layer spreads over the sequence.
"""

RULES = (
    Rule(sink=64, alpha=64, beta=0.0),
    Rule(sink=128, alpha=0, beta=0.5),
    Rule(sink=64, alpha=-150, beta=0.75),
    Rule(sink=64, alpha=0, beta=1.0),
)


def make(family: str, **changes: Any) -> PreTrainedModel:
    """A new model of a family, in float64, with weights large enough for attention to matter."""
    torch.manual_seed(0)
    shape = {name: value for name, value in SHAPE.items() if family != "GPTBigCode" or name in OTHERWISE_NAMED}
    config = getattr(transformers, f"{CONFIGS.get(family, family)}Config")(**shape | FAMILIES[family] | changes)
    model = AutoModelForCausalLM.from_config(config)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the others have no float64
    if family in SINGLE:
        model.set_attn_implementation("eager")  # the default of transformers 5.17 for Gemma-2 drops its soft-cap
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            torch.nn.init.normal_(parameter, std=2.0)  # some families begin with zeros, others with little more
    return model.double().eval()


made = cache(make)


def plan_of(model: Any, seed: int = 0) -> Plan:
    """Rules of all kinds, drawn; some cut a text of 150 tokens."""
    rng, info = np.random.default_rng(seed), ModelInfo.of(model)
    groups = {layer: [RULES[i] for i in rng.integers(len(RULES), size=info.kv_heads)] for layer in info.ruled_layers}
    return Plan.from_rules(model, groups | {info.ruled_layers[0]: [RULES[0]] * info.kv_heads}, defaults=RULES[0])


def seen(plan: Plan, layer: int, n: int) -> Tensor:
    """What each query of a text of `n` tokens sees, from what the plan says of each length: bool [kv_heads, n, n]."""
    spans = np.stack([plan.spans(i + 1)[layer] for i in range(n)])  # [n, kv_heads]
    sink = np.array([rule.sink for rule in plan.groups[layer]])
    i, j = np.arange(n)[:, None, None], np.arange(n)[None, :, None]
    kept = (j <= i) & ((spans[:, None] == i + 1) | (j < sink) | (j > i - (spans[:, None] - sink)))
    return torch.from_numpy(kept).permute(2, 0, 1)


def eager(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
    """Attention by the own code of a family, which adds its mask."""
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    added = torch.zeros(mask.shape, dtype=q.dtype).masked_fill_(~mask, torch.finfo(q.dtype).min)
    return sys.modules[type(module).__module__].eager_attention_forward(module, q, k, v, added, **kwargs)


def softmax(
    q: Tensor, k: Tensor, mask: Tensor, scaling: float, softcap: float | None = None, s_aux: Tensor | None = None,
    **_: Any,
) -> Tensor:  # fmt: skip
    """Weights of masked attention, written out, [batch, heads, rows, keys]; each query head has keys of its own."""
    scores = q @ k.mT * scaling
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    powers = scores.exp() * mask
    sunk = 0.0 if s_aux is None else s_aux.exp()[:, None, None]
    return powers / (powers.sum(-1, keepdim=True) + sunk).clamp(min=1e-300)  # 1e-300: rows that are padding


def layers_of(model: Any) -> dict[Any, int]:
    """The layer of each attention module, which Zamba's do not know."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "is_causal") and hasattr(module, "layer_idx"):
            zamba = type(module).__name__.startswith("Zamba")
            found[module] = int(name.split("layers.")[-1].split(".")[0]) if zamba else module.layer_idx
    return found


class Oracle:
    """A model that knows of no plan, whose layers with rules attend by masks that are written out; a context manager.

    Attributes:
        mask: [batch, columns], 0 where padded, of all columns that will be; None when nothing is.
    """

    def __init__(self, model: Any, plan: Plan, mask: Tensor | None = None) -> None:
        self.model, self.plan, self.mask, self.layers = model, plan, mask, layers_of(model)

    def __enter__(self) -> Any:
        AttentionInterface.register("written_out", self._attend)
        AttentionMaskInterface.register("written_out", sdpa_mask)
        self._before = self.model.config._attn_implementation
        self.model.set_attn_implementation("written_out")
        return self.model

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self._before)

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        layer, heads = self.plan.model.sources[self.layers[module]], q.shape[1] // k.shape[1]
        new, columns = q.shape[2], k.shape[2]
        modified = kwargs.get("s_aux") is not None or kwargs.get("softcap") is not None
        if layer not in self.plan.model.ruled_layers and modified:
            return eager(module, q, k, v, mask, **kwargs)
        if layer in self.plan.model.ruled_layers:
            real = torch.ones(len(q), columns) if self.mask is None else self.mask[:, :columns]
            if len(real) != len(q):  # beams
                real = real.repeat_interleave(len(q) // len(real), 0)
            at = (real.cumsum(1) - 1).clamp(min=0).long()  # [batch, columns]
            kept = seen(self.plan, layer, columns)  # [kv_heads, columns, columns]
            mask = torch.stack([kept[:, i[-new:, None], i[None]] & r.bool() for i, r in zip(at, real, strict=True)])
            mask = mask.repeat_interleave(heads, 1)
        k, v = (x.repeat_interleave(heads, 1) for x in (k, v))
        if modified:
            return (softmax(q, k, mask, **kwargs) @ v).transpose(1, 2), None
        out = scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None and new == columns, scale=kwargs.get("scaling")
        )
        return out.transpose(1, 2), None


def ids_of(batch: int, n: int) -> Tensor:
    """Return random tokens, the same for the same `n`."""
    return torch.randint(3, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(n))
