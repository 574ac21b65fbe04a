"""Stages `prefill` and `decode`: plans beside dense vLLM, whose engines take turns in one process."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from serving_parts import engine
from serving_parts.sizes import Sizes
from serving_parts.texts import texts

from moa.bench import timing

CPU = torch.device("cpu")


def prefill(model: str, plans: Mapping[str, str | None], sizes: Sizes, chunk: int) -> dict[str, Any]:
    """Return the seconds until a prompt's first token, in chunks of so many tokens."""
    engines = started(model, plans, sizes, 1, max_num_batched_tokens=chunk)
    calls = {name: partial(first_token, llm, sizes.length) for name, llm in engines.items()}
    timing.alternate(calls, 1)  # warm up
    return {name: times.summary() for name, times in timing.alternate(calls, sizes.rounds).items()}


def first_token(llm: Any, length: int) -> list[float]:
    engine.add(llm, texts(llm.get_tokenizer(), [length]), 1)
    return [timing.timed(lambda: engine.finish(llm), CPU)]


def decode(model: str, plans: Mapping[str, str | None], sizes: Sizes, batch: int) -> dict[str, Any]:
    """Return the seconds of decode steps of so many requests; the steps go on from round to round."""
    engines = started(model, plans, sizes, batch)
    for llm in engines.values():
        lengths = [sizes.length] * batch
        # more than all steps: who was read first generates while the others are read
        engine.add(llm, texts(llm.get_tokenizer(), lengths), sizes.longest - sizes.length)
        while len(engine.scheduler(llm).running) < batch or not engine.read(llm):
            llm.llm_engine.step()
        llm.llm_engine.step()  # warm up
    calls = {name: partial(steps, llm, sizes.steps, batch) for name, llm in engines.items()}
    return {name: times.summary() for name, times in timing.alternate(calls, sizes.rounds).items()}


def steps(llm: Any, count: int, batch: int) -> list[float]:
    """Return the seconds of so many steps, of which each gave every request of the batch a token."""
    seconds = []
    for _ in range(count):
        seconds.append(timing.timed(llm.llm_engine.step, CPU))
        if (running := len(engine.scheduler(llm).running)) != batch:
            raise RuntimeError(f"a step was timed of {running} requests, not {batch}")
    return seconds


def started(model: str, plans: Mapping[str, str | None], sizes: Sizes, batch: int, **settings: Any) -> dict[str, Any]:
    """Return an engine per plan, with memory for so many requests of the dense model."""
    memory = {"kv_cache_memory_bytes": engine.memory(next(filter(None, plans.values())), sizes, batch)}
    return {name: engine.start(model, plan, sizes, **memory, **settings) for name, plan in plans.items()}
