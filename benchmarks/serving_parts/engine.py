"""An engine of vLLM in this process, under a plan or dense, and what is asked of it."""

import os

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from pathlib import Path
from typing import Any

import numpy as np
from vllm import LLM, SamplingParams
from vllm.v1.core.kv_cache_utils import get_max_concurrency_for_kv_cache_config

LONGEST = 4096
POOL = 400
"""Memory for keys and values, MiB."""


def start(model: str, plan: str | None, chunk: int, **settings: Any) -> Any:
    """Return an engine: float32, texts of up to 4,096 tokens, 400 MiB of keys and values."""
    usual = {
        "dtype": "float32", "max_model_len": LONGEST, "enforce_eager": True, "max_num_seqs": 32,
        "max_num_batched_tokens": chunk, "enable_prefix_caching": False, "kv_cache_memory_bytes": POOL << 20,
        "distributed_executor_backend": "uni", "disable_log_stats": False, "block_size": 64,
        "additional_config": {"moa_plan": plan} if plan else {},
    }  # fmt: skip
    return LLM(model, **(usual | settings))


def greedy(new: int) -> Any:
    return SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def texts(llm: Any, count: int, length: int) -> list[list[int]]:
    """Return pieces of this repository's guides, each from another place."""
    pages = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    ids = llm.get_tokenizer().encode("".join(page.read_text() for page in pages))
    starts = np.linspace(0, len(ids) - length - 1, count).astype(int)
    return [ids[start : start + length] for start in starts]


def add(llm: Any, prompts: list[list[int]], new: int) -> None:
    for i, ids in enumerate(prompts):
        llm.llm_engine.add_request(str(i), {"prompt_token_ids": ids}, greedy(new))


def held(model: str, plan: str | None) -> int:
    """Return how many pages of one KV head a request holds when its 3,000 tokens have been read, in chunks of 256."""
    llm = start(model, plan, 256)
    groups = scheduler(llm).kv_cache_config.kv_cache_groups
    heads = [len(group.layer_names) * group.kv_cache_spec.num_kv_heads for group in groups]
    add(llm, texts(llm, 1, 3000), 8)
    managers = scheduler(llm).kv_cache_manager.coordinator.single_type_managers
    pages = 0
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        tables = [list(manager.req_to_blocks.values()) for manager in managers]
        if all(tables):  # the last step frees everything
            pages = sum(
                size * sum(not block.is_null for block in blocks)
                for size, (blocks,) in zip(heads, tables, strict=True)
            )  # fmt: skip
    return pages


def concurrency(model: str, plan: str | None, chunk: int) -> float:
    """Return how many requests of 4,096 tokens vLLM says fit."""
    llm = start(model, plan, chunk)
    config = scheduler(llm).kv_cache_config
    return float(get_max_concurrency_for_kv_cache_config(llm.llm_engine.vllm_config, config))
