"""Quality of a plan beside the dense model: perplexity, KL divergence and needle retrieval, on the same samples."""

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moa.haystack import Haystack
from moa.hf.logits import HEAD_CHUNK, hidden_of, logits_of
from moa.plans.errors import Unsupported
from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa.profiler.text import Part, split
from moa.profiler.tokens import encode, start
from moa.step import longrope_limit
from moa.timing import Variant, held_bytes

ANSWER_TOKENS = 8
"""Tokens generated per question at most; the answer counts when it stands at their start."""

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

    @property
    def variant(self) -> Variant:
        """How the model is run."""
        return Variant(self.plan, backend=self.backend)


@torch.inference_mode()
def ask(model: Any, tokenizer: Any, row: Row, hay: Haystack) -> dict[str, Any]:
    """Cache the text once, then answer every question greedily from a copy of the cache.

    Returns:
        `right`: one bool per question; `answers`: the texts generated; `cache_bytes`: what the cache holds of the text.

    Raises:
        Unsupported: The model rotates keys in another way once the answer is there than before the question.
    """
    longest = len(hay.ids) + max(len(q.ids) for q in hay.questions) + ANSWER_TOKENS
    limit = longrope_limit(model.config.get_text_config())
    if limit is not None and len(hay.ids) <= limit < longest:
        raise Unsupported(
            f"a text of {len(hay.ids)} tokens, with question and answer up to {longest}: the model rotates keys of "
            f"texts over {limit} tokens in another way, so choose lengths up to {limit - ANSWER_TOKENS} or well over it"
        )
    with row.variant.on(model):
        cache = row.variant.cache(model, len(hay.ids))
        model(torch.tensor([hay.ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        held = held_bytes(cache)
        answers = [_continue(model, tokenizer, deepcopy(cache), q.ids, q.answer) for q in hay.questions]
    right = [answered(text, q.answer) for text, q in zip(answers, hay.questions, strict=True)]
    return {"right": right, "answers": answers, "cache_bytes": held}


def answered(text: str, answer: str) -> bool:
    """Whether `text` starts with the words of `answer`, case and punctuation aside."""
    wanted = _words(answer)
    return _words(text)[: len(wanted)] == wanted


def undecided(text: str, answer: str) -> bool:
    """Whether more text could still tell whether it is the answer: quotes before it do not count, its end must show."""
    said, wanted = " ".join(_words(text)), " ".join(_words(answer))
    return wanted.startswith(said) and (said != wanted or text[-1:].isalnum())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _continue(model: Any, tokenizer: Any, cache: Any, ids: Sequence[int], answer: str) -> str:
    """Greedy text after `ids`, no longer than it takes to tell whether it is the answer."""
    stops = model.generation_config.eos_token_id
    stops = {stops} if isinstance(stops, int) else set(stops or ())
    out: list[int] = []
    text, step = "", list(ids)
    while len(out) < ANSWER_TOKENS and undecided(text, answer):
        tokens = torch.tensor([step], device=model.device)
        token = int(model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        if token in stops:
            break
        out.append(token)
        text, step = tokenizer.decode(out), [token]
    return text


def windows(tokenizer: Any, length: int, count: int, part: Part = "evaluation") -> list[list[int]]:
    """Up to `count` windows of `length` tokens of held-out text, one after the other, each behind `start`."""
    first = start(tokenizer)
    step = length - len(first)
    ids: list[int] = []
    for text in split(part):
        ids += encode(tokenizer, text + "\n\n")
        if len(ids) >= count * step:
            break
    return [first + ids[i * step : (i + 1) * step] for i in range(min(count, len(ids) // step))]


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
        kl, given, _ = against(model, dense[:-1], hidden[:-1], ids[0, 1:])
        out[row.name] = {
            name: [float(q.mean()) for q in x.tensor_split(QUARTERS)] for name, x in (("nll", -given), ("kl", kl))
        }
    return out


@torch.inference_mode()
def against(model: Any, dense: Tensor, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Next-token distributions from two models' last hidden states [tokens, d], a chunk of logits at a time.

    Returns:
        KL(dense || other) in nats, the other's log-probability of `ids`, and whether that is its choice: [tokens] each.
    """
    parts = []
    for p, q, given in zip(*(x.split(HEAD_CHUNK) for x in (dense, hidden, ids)), strict=True):
        log_p, log_q = (logits_of(model, h).log_softmax(-1) for h in (p, q))
        chosen = log_q.gather(1, given[:, None])[:, 0]
        parts.append(((log_p.exp() * (log_p - log_q)).sum(-1), chosen, log_q.argmax(-1) == given))
    kl, chosen, right = (torch.cat(x) for x in zip(*parts, strict=True))
    return kl, chosen, right


def _hidden(model: Any, row: Row, ids: Tensor) -> Tensor:
    """Last hidden states [tokens, d]."""
    with row.variant.on(model):
        return hidden_of(model, ids)


def rows_at(plans: Sequence[tuple[str, Plan]], length: int, uniform: bool, backend: str | None) -> list[Row]:
    """Dense, then each plan and, when asked, the least uniform window that keeps as much as the plan at `length`."""
    rows = [Row("dense", None)]
    for name, plan in plans:
        rows.append(Row(name, plan, backend))
        if uniform:
            span = length - BLOCK * int(length * (1 - plan.density(length)) / BLOCK + 1e-9)  # what a window can keep
            twin = Plan.uniform(plan.model, span / length, at=length)
            rows.append(Row(f"uniform like {name}", twin, backend))
    return rows
