"""Stages `pages` and `concurrency`: what a request holds, and how many fit."""

from typing import Any

from serving_parts import engine
from serving_parts.sizes import Sizes
from serving_parts.texts import texts
from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config


def pages(model: str, plan: str | None, sizes: Sizes) -> dict[str, Any]:
    """Return how many pages of one KV head a request holds when its `sizes.held` tokens have been read."""
    llm = engine.start(model, plan, sizes)
    groups = engine.scheduler(llm).kv_cache_config.kv_cache_groups
    heads = [len(group.layer_names) * group.kv_cache_spec.num_kv_heads for group in groups]
    engine.add(llm, texts(llm.get_tokenizer(), [sizes.held]), 4)
    while not engine.read(llm) or not engine.scheduler(llm).running:
        llm.llm_engine.step()
    llm.llm_engine.step()  # what the prompt needed no more is freed when the next step begins
    managers = engine.scheduler(llm).kv_cache_manager.coordinator.single_type_managers
    tables = [next(iter(manager.req_to_blocks.values())) for manager in managers]
    kept = [sum(not block.is_null for block in blocks) for blocks in tables]
    return {"pages": sum(size * count for size, count in zip(heads, kept, strict=True)), "groups": len(groups)}


def concurrency(model: str, plan: str | None, sizes: Sizes, chunk: int, length: int) -> dict[str, Any]:
    """Return how many requests of a length vLLM says fit."""
    llm = engine.start(model, plan, sizes, max_num_batched_tokens=chunk, max_model_len=length)
    config = engine.scheduler(llm).kv_cache_config
    return {"requests": float(get_max_concurrency_for_kv_cache_config(llm.llm_engine.vllm_config, config))}
