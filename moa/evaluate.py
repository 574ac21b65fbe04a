"""Quality of a plan beside the dense model: perplexity, KL divergence and needle retrieval, on the same samples."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from moa.applied import apply
from moa.cache import KVCache
from moa.haystack import Haystack
from moa.plans.plan import Plan
from moa.profiler.head import HEAD_CHUNK, logits_of
from moa.profiler.text import split

ANSWER_TOKENS = 8
"""Tokens generated per question; the answer counts when it stands in them."""

QUARTERS = 4
"""Perplexity and KL are reported by quarter of the window."""


@dataclass(frozen=True)
class Row:
    """One line of the table: the dense model, or a plan at a length.

    Attributes:
        name: What the table calls it.
        plan: None is the dense model.
        backend: Back-end name, None for the device's own.
    """

    name: str
    plan: Plan | None
    backend: str | None = None

    def applied(self, model: Any) -> Any:
        """Context in which the model attends as the row says."""
        return nullcontext() if self.plan is None else apply(model, self.plan, self.backend)

    def cache(self, model: Any) -> Any:
        """An empty cache of the row's kind."""
        return DynamicCache(config=model.config) if self.plan is None else KVCache(self.plan)


@torch.inference_mode()
def ask(model: Any, tokenizer: Any, row: Row, hay: Haystack) -> dict[str, Any]:
    """Cache the text once, then answer every question greedily from a copy of the cache.

    Returns:
        `right`: one bool per question; `cache_bytes`: what the cache holds of the text.
    """
    with row.applied(model):
        cache = row.cache(model)
        model(torch.tensor([hay.ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        right = [q.answer in _continue(model, tokenizer, deepcopy(cache), q.ids) for q in hay.questions]
        return {"right": right, "cache_bytes": _bytes(cache)}


def _continue(model: Any, tokenizer: Any, cache: Any, ids: Sequence[int]) -> str:
    """Greedy text after `ids`."""
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    out: list[int] = []
    step = list(ids)
    while len(out) < ANSWER_TOKENS:
        tokens = torch.tensor([step], device=model.device)
        token = int(model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        if token in stops:
            break
        out.append(token)
        step = [token]
    text: str = tokenizer.decode(out)
    return text


def _bytes(cache: Any) -> int:
    """Bytes of keys and values a cache holds."""
    if isinstance(cache, KVCache):
        return cache.nbytes
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))


def windows(tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """Up to `count` windows of `length` tokens of held-out text, one after the other."""
    ids: list[int] = []
    for text in split("evaluation"):
        ids += tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
        if len(ids) >= count * length:
            break
    return [ids[i * length : (i + 1) * length] for i in range(min(count, len(ids) // length))]


@torch.inference_mode()
def divergence(model: Any, rows: Sequence[Row], window: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Negative log-likelihood and KL(dense || row) of one window, nats per token, by quarter of the window.

    Args:
        model: The model.
        rows: What to compare; the dense model is run besides.
        window: Token ids.

    Returns:
        Row name to `nll` and `kl`, one mean per quarter.
    """
    ids = torch.tensor([window], device=model.device)
    dense = _hidden(model, Row("dense", None), ids)
    out = {}
    for row in rows:
        hidden = dense if row.plan is None else _hidden(model, row, ids)
        nll, kl = [], []
        for start in range(0, len(window) - 1, HEAD_CHUNK):
            part = slice(start, min(start + HEAD_CHUNK, len(window) - 1))
            log_p, log_q = (logits_of(model, h[part]).log_softmax(-1) for h in (dense, hidden))
            nll.append(-log_q.gather(1, ids[0, part.start + 1 : part.stop + 1, None])[:, 0])
            kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
        out[row.name] = {
            name: [float(q.mean()) for q in torch.cat(x).tensor_split(QUARTERS)]
            for name, x in (("nll", nll), ("kl", kl))
        }
    return out


def _hidden(model: Any, row: Row, ids: Tensor) -> Tensor:
    """Last hidden states [tokens, d]."""
    with row.applied(model):
        hidden: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        return hidden


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson, 1927)."""
    rate, spread = right / count, z * z / count
    middle = (rate + spread / 2) / (1 + spread)
    half = z * math.sqrt(rate * (1 - rate) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def rows_at(plans: Sequence[tuple[str, Plan]], length: int, uniform: bool, backend: str | None) -> list[Row]:
    """Dense, then each plan and, when asked, the uniform window of the plan's density at `length`."""
    rows = [Row("dense", None)]
    for name, plan in plans:
        rows.append(Row(name, plan, backend))
        if uniform:
            twin = Plan.uniform(plan.model, plan.density(length), at=length)
            rows.append(Row(f"uniform like {name}", twin, backend))
    return rows


Run = Callable[[str, Callable[[], Any]], Any]
"""(key, work) to the work's result: where finished results are kept and found again."""
