"""Stage `equality`: what vLLM answers under a plan is what `moa.apply` with the reference answers, in float32."""

from itertools import cycle, islice
from typing import Any

import torch
from serving_parts import engine
from serving_parts.answers import Answer, compared
from serving_parts.sizes import Sizes
from serving_parts.texts import texts

import moa
from moa.hf.load import load_model


@torch.no_grad()
def reference(model: str, plan: str, sizes: Sizes) -> list[Answer]:
    """Return the answer to each prompt, from transformers under `moa.apply`."""
    loaded, tokenizer = load_model(model, dtype="float32", device="cpu")
    found = []
    with moa.apply(loaded, plan, backend="reference"):
        for ids in texts(tokenizer, list(sizes.prompts)):
            answer: Answer = {"tokens": [], "logprobs": [], "gaps": []}
            cache, new = None, ids
            for _ in range(sizes.new):
                out = loaded(torch.tensor([new]), past_key_values=cache, use_cache=True, logits_to_keep=1)
                best = out.logits[0, -1].log_softmax(-1).topk(2)
                cache, new = out.past_key_values, [int(best.indices[0])]
                answer["tokens"].append(new[0])
                answer["logprobs"].append(float(best.values[0]))
                answer["gaps"].append(float(best.values[0] - best.values[1]))
            found.append(answer)
    return found


def served(model: str, plan: str, sizes: Sizes, way: str, wanted: list[Answer]) -> dict[str, Any]:
    """Return how far vLLM's answers are from those wanted, served in one of the ways of `rows.WAYS`."""
    chunk = 256 if way in ("chunks of 256", "preemption") else sizes.longest
    llm = engine.start(
        model,
        plan,
        sizes,
        max_num_batched_tokens=chunk,
        enable_prefix_caching=way == "prefix cache",
        kv_cache_memory_bytes=engine.memory(plan, sizes, 8),
    )
    prompts, new = texts(llm.get_tokenizer(), list(sizes.prompts)), sizes.new
    more: dict[str, Any] = {}
    if way == "one by one":
        found = [output for ids in prompts for output in engine.answers(llm, [ids], new)]
    elif way == "batch of 8":
        found = engine.answers(llm, list(islice(cycle(prompts), 8)), new)
    elif way == "chunks of 256":
        found = engine.answers(llm, prompts, new)
    elif way == "prefix cache":
        engine.answers(llm, prompts, new)
        found = engine.answers(llm, prompts, new)
        more["tokens found there"] = hits(llm)
    else:
        starving = Starving(llm)
        found = engine.answers(llm, prompts, new, starving.step)
        more["preemptions"] = starving.preemptions
    return compared(found, list(islice(cycle(wanted), len(found)))) | more


def hits(llm: Any) -> int:
    """Return how many tokens were not computed because their keys and values were there."""
    return sum(m.value for m in llm.get_metrics() if m.name == "vllm:prefix_cache_hits")


class Starving:
    """Steps of an engine whose pool is kept empty when all prompts have been read, until a request is preempted."""

    def __init__(self, llm: Any) -> None:
        self._llm, self._taken, self.preemptions = llm, [], 0

    def step(self) -> Any:
        scheduler = engine.scheduler(self._llm)
        pool = scheduler.kv_cache_manager.block_pool
        if engine.read(self._llm) and not self.preemptions:
            self._taken += pool.get_new_blocks(pool.get_num_free_blocks())
        outputs = self._llm.llm_engine.step()
        self.preemptions = max(self.preemptions, *(r.num_preemptions for r in scheduler.requests.values()), 0)
        if self.preemptions:
            pool.free_blocks(self._taken)
            self._taken = []
        return outputs
