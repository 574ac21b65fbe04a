"""A tiny model, plans for it, and what `moa.apply` says."""

from typing import Any, NamedTuple

import torch

from moa.plans.patterns import Rule
from moa.plans.plan import FULL

VOCABULARY = 512
LAYERS, KV_HEADS = 3, 2
WINDOWS = [
    [Rule(alpha=128, beta=0), Rule(alpha=0, beta=0.5)],
    [FULL, Rule(sink=128, alpha=300, beta=0)],
    [Rule(alpha=100, beta=0.125), Rule(alpha=128, beta=0)],
]
KEYDIFFS = [
    [Rule(pattern="keydiff_window", alpha=128, beta=0), Rule(alpha=0, beta=0.5)],
    [Rule(pattern="keydiff_window", sink=128, alpha=300, beta=0), FULL],
    [Rule(pattern="keydiff_window", alpha=64, beta=0.125), Rule(pattern="keydiff_window", alpha=128, beta=0)],
]


class Answer(NamedTuple):
    """Greedy tokens, the logprob of each, and how much likelier it was than the next best."""

    tokens: list[int]
    logprobs: list[float]
    gaps: list[float]


def prompt(length: int, seed: int) -> list[int]:
    """Random words."""
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


PROMPTS = [prompt(length, seed) for seed, length in enumerate((700, 65, 333, 512, 1, 127))]
NEW = 40


def greedy(reference: Any, ids: list[int]) -> Answer:
    answer = Answer([], [], [])
    cache, new = None, ids
    for _ in range(NEW):
        out = reference(torch.tensor([new]), past_key_values=cache, use_cache=True)
        best = out.logits[0, -1].log_softmax(-1).topk(2)
        cache, new = out.past_key_values, [int(best.indices[0])]
        answer.tokens.append(new[0])
        answer.logprobs.append(float(best.values[0]))
        answer.gaps.append(float(best.values[0] - best.values[1]))
    return answer


def pool(llm: Any) -> Any:
    """The blocks of an engine that runs in this process."""
    return manager(llm).block_pool


def manager(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler.kv_cache_manager
