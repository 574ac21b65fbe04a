"""An engine of vLLM in this process, under a plan or dense, and what is asked of it."""

import os

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over every pool

from collections.abc import Callable
from typing import Any

from serving_parts.sizes import Sizes
from vllm import LLM, SamplingParams

from moa.plans.plan import Plan
from moa.plans.span import BLOCK


def start(model: str, plan: str | None, sizes: Sizes, **settings: Any) -> Any:
    """Return an engine: float32, chunks of 256, `sizes.pool` MiB of keys and values."""
    usual = {
        "dtype": "float32", "max_model_len": sizes.longest, "enforce_eager": True, "max_num_seqs": 32,
        "max_num_batched_tokens": 256, "enable_prefix_caching": False, "kv_cache_memory_bytes": sizes.pool << 20,
        "distributed_executor_backend": "uni", "disable_log_stats": False, "block_size": 64,
        "additional_config": {"moa_plan": plan} if plan else {},
    }  # fmt: skip
    return LLM(model, **(usual | settings))


def memory(plan: str, sizes: Sizes, requests: int) -> int:
    """Return the bytes that so many of the longest requests need in the model of a plan, when it is dense.

    Each has a block more than that: vLLM keeps one of the pool's for itself.
    """
    return int(Plan.load(plan).model.dense_kv_bytes(sizes.longest + BLOCK, requests))


def scheduler(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def add(llm: Any, prompts: list[list[int]], new: int, **settings: Any) -> None:
    """Ask for greedy answers of `new` tokens; request i has the name "i"."""
    asked = SamplingParams(**({"temperature": 0, "max_tokens": new, "ignore_eos": True} | settings))
    for i, ids in enumerate(prompts):
        llm.llm_engine.add_request(str(i), {"prompt_token_ids": ids}, asked)


def read(llm: Any) -> bool:
    """Return whether all requests run and have been read, so that the next step gives each a token."""
    running = scheduler(llm).running
    return not scheduler(llm).waiting and all(r.num_computed_tokens >= r.num_prompt_tokens for r in running)


def finish(llm: Any, step: Callable[[], Any] | None = None) -> dict[str, Any]:
    """Return the answers to all requests, by their names.

    Args:
        llm: The engine.
        step: Computes one step; None is the engine's own.
    """
    done = {}
    while llm.llm_engine.has_unfinished_requests():
        for output in (step or llm.llm_engine.step)():
            if output.finished:
                done[output.request_id] = output
    return done


def answers(llm: Any, prompts: list[list[int]], new: int, step: Callable[[], Any] | None = None) -> list[Any]:
    """Return the answer to each prompt, all asked at once, with the logprobs of its tokens."""
    add(llm, prompts, new, logprobs=1)
    done = finish(llm, step)
    return [done[str(i)].outputs[0] for i in range(len(prompts))]
