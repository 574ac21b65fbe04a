"""What is refused, by name and at start-up, since no plan could honour it here."""

from collections.abc import Container
from typing import Any

from moa.plans import paged
from moa.plans.errors import Unsupported
from moa.plans.plan import Plan
from moa.plans.span import BLOCK


def engine(config: Any, plan: Plan) -> None:
    """Refuse what the whole engine cannot do under a plan.

    Args:
        config: The `VllmConfig`.
        plan: The plan.

    Raises:
        ModelMismatch: The plan was made for another model.
        Unsupported: A setting or the plan itself; the message names it.
    """
    plan.check(config.model_config.hf_config)
    paged.check(plan)
    cache, parallel = config.cache_config, config.parallel_config
    computed = str(config.model_config.dtype).removeprefix("torch.")
    refused = {
        "speculative decoding": config.speculative_config,
        f"--kv-cache-dtype {cache.cache_dtype} (only the model's, {computed})": cache.cache_dtype
        not in ("auto", computed),
        "a KV connector (--kv-transfer-config)": config.kv_transfer_config,
        "context parallelism": max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "--enable-dbo": parallel.enable_dbo,
        "--disable-hybrid-kv-cache-manager": config.scheduler_config.disable_hybrid_kv_cache_manager,
        f"--block-size {cache.block_size} (only {BLOCK})": cache.user_specified_block_size
        and cache.block_size != BLOCK,
        "a sliding window of the model's own": cache.sliding_window,
        "a model whose pictures are seen both ways": config.model_config.is_mm_prefix_lm,
        "--max-model-len auto": config.model_config.original_max_model_len == -1,
    }
    for what, found_here in refused.items():
        if found_here:
            raise Unsupported(f"vLLM under a plan: {what} is not supported")


def layer(given: dict[str, Any]) -> None:
    """Refuse what one layer's attention cannot do under a rule.

    Args:
        given: The arguments of the model's `Attention`, by name.

    Raises:
        Unsupported: The message names it.
    """
    refused = {
        "alibi_slopes": "ALiBi", "logits_soft_cap": "soft-capping of logits",
        "sinks": "learned sinks", "per_layer_sliding_window": "a sliding window of the model's own",
        "kv_sharing_target_layer_name": "keys shared between layers", "attn_backend": "a back-end of the model's own",
    }  # fmt: skip
    for name, what in refused.items():
        value = given.get(name)
        if value is not None and value is not False:
            raise Unsupported(f"vLLM under a plan: {what} ({name}) is not supported")
    if given["attn_type"] != "decoder":
        raise Unsupported(f"vLLM under a plan: attention must be causal, found {given['attn_type']}")
    if given["head_size_v"] not in (None, given["head_size"]):
        raise Unsupported("vLLM under a plan: keys and values must have one size")


def fused(given: dict[str, Any], known: Container[str]) -> None:
    """Refuse what the kernels for GPUs cannot do, besides what `layer` refuses.

    Args:
        given: The arguments of the model's `Attention`, by name.
        known: The names of those that every `Attention` takes.

    Raises:
        Unsupported: The message names it.
    """
    if others := sorted(name for name, value in given.items() if name not in known and value is not None):
        raise Unsupported(f"vLLM under a plan on a GPU: {', '.join(others)} is not supported")
