"""Measure perplexity and KL divergence from the dense model on windows of held-out text."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moa.evaluation.prefills import Kept, kept
from moa.evaluation.rows import Row
from moa.evaluation.tasks.task import Task
from moa.hf.logits import HEAD_CHUNK, hidden_of, logits_of
from moa.hf.text import Part, split
from moa.hf.tokens import encode, start
from moa.plans.errors import MoaError

QUARTERS, POSITIONS = 4, 32
"""Perplexity and KL are reported by quarter of the window, and by finer parts."""


@dataclass(frozen=True)
class Text(Task):
    """The task of consecutive windows of held-out text."""

    dense_besides = True

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[list[int]]:
        """Return the windows' token ids; the seed changes nothing.

        Raises:
            MoaError: The text is too short for so many windows.
        """
        return sampled(tokenizer, length, count)

    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: list[int]
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's negative log-likelihood and KL, by part of the window."""
        found = divergence(model, rows, content)
        yield from ((row, found[row.name]) for row in rows)

    def score(self, contents: Sequence[list[int]], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return perplexity and KL over all windows, and by quarter; every quarter has the same weight.

        Figures by position are there unless some result is of an older version, which has none.
        """
        nll, kl = (np.array([r[measure] for r in results]).mean(0) for measure in ("nll", "kl"))
        base = np.array([r["nll"] for r in dense]).mean()
        along = {}
        if all("by_position" in r for r in results):
            fine = {name: np.array([r["by_position"][name] for r in results]).mean(0) for name in ("nll", "kl")}
            along = {"perplexity_by_position": np.exp(fine["nll"]).tolist(), "kl_by_position": fine["kl"].tolist()}
        return {
            "windows": len(results),
            "perplexity": math.exp(nll.mean()),
            "perplexity_against_dense": math.exp(nll.mean() - base),
            "kl": float(kl.mean()),
            "perplexity_by_quarter": np.exp(nll).tolist(),
            "kl_by_quarter": kl.tolist(),
            **along,
        }

    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return perplexity and KL."""
        return [f"{score['perplexity']:.3f}", f"{score['kl']:.4f}"]


def sampled(tokenizer: Any, length: int, count: int) -> list[list[int]]:
    """Return `count` windows.

    Raises:
        MoaError: The text is too short for so many windows.
    """
    found = windows(tokenizer, length, count)
    if len(found) < count:
        raise MoaError(f"held-out text gives {len(found)} windows of {length} tokens, {count} were asked for")
    return found


def windows(tokenizer: Any, length: int, count: int, part: Part = "evaluation") -> list[list[int]]:
    """Return up to `count` consecutive windows of `length` tokens of held-out text, each behind `start`."""
    first = start(tokenizer)
    step = length - len(first)
    ids: list[int] = []
    for text in split(part):
        ids += encode(tokenizer, text + "\n\n")
        if len(ids) >= count * step:
            break
    return [first + ids[i * step : (i + 1) * step] for i in range(min(count, len(ids) // step))]


@torch.inference_mode()
def divergence(model: Any, rows: Sequence[Row], window: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return negative log-likelihood and KL(dense || row) of one window, nats per token, by part of the window.

    Args:
        model: The model.
        rows: The rows to compare with the dense model, which is run in any case.
        window: Token ids.

    Returns:
        A mapping from row name to `nll` and `kl`, one mean per quarter, and both in `by_position` in finer parts.
    """
    ids = torch.tensor([window], device=model.device)
    dense = hidden_by(model, Row("dense", None), ids)
    found: dict[Kept, Tensor] = {kept(Row("dense", None)): dense}  # one call is the same under rows that keep the same
    parts = {}
    for row in rows:
        same = kept(row)
        if same not in found:
            found[same] = hidden_by(model, row, ids)
        parts[row.name] = by_part(model, dense, found[same], ids)
    return parts


def by_part(model: Any, dense: Tensor, hidden: Tensor, ids: Tensor) -> dict[str, Any]:
    """Return `nll` and `kl` of the end of a text [1, n], by quarter and by position, from hidden states [tokens, d]."""
    kl, given, _ = against(model, dense[:-1], hidden[:-1], ids[0, 1 - len(hidden) :])
    quarters, fine = (
        {name: [float(part.mean()) for part in x.tensor_split(parts)] for name, x in (("nll", -given), ("kl", kl))}
        for parts in (QUARTERS, POSITIONS)
    )
    return {**quarters, "by_position": fine}


@torch.inference_mode()
def against(model: Any, dense: Tensor, hidden: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compare two models' next-token distributions, from last hidden states [tokens, d], a chunk of logits at a time.

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


def hidden_by(model: Any, row: Row, ids: Tensor) -> Tensor:
    """Return the last hidden states [tokens, d] of a text in one call."""
    with row.variant.on(model):
        return hidden_of(model, ids)


TASKS = (Text("text", ("perplexity", "KL, nats"), 2, "windows of held-out text"),)
