"""Measure perplexity and KL divergence on held-out text as decoding sees it: token by token behind a cached text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moa.evaluation.prefills import Prefills
from moa.evaluation.rows import Row
from moa.evaluation.tasks.text import Text, by_part, hidden_by
from moa.hf.calls import parts
from moa.hf.logits import hidden_of
from moa.plans.reading import SHORT

TAIL = 1024
"""The most tokens at a window's end that are decoded; at most half of the window."""


@dataclass(frozen=True)
class Decoded(Text):
    """The windows of `Text`, whose last tokens are given in calls of as few tokens as read under plans that read.

    Attributes:
        most: The most tokens that are decoded.
    """

    most: int = TAIL

    @torch.inference_mode()
    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: list[int]
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's negative log-likelihood and KL, by quarter of the tokens that are decoded."""
        ids, count = torch.tensor([content], device=model.device), tail(content, self.most)
        dense, read = hidden_by(model, Row("dense", None), ids)[-count:], begun(model, rows, ids, count)
        for row in rows:
            found = dense if row.plan is None else decoded(model, row, ids, count, read)[1:]
            yield row, by_part(model, dense, found, ids)


def tail(content: Sequence[int], most: int = TAIL) -> int:
    """Return how many tokens at the end of a window are decoded, `most` or half of it."""
    return min(most, len(content) // 2)


@torch.inference_mode()
def decoded(model: Any, row: Row, ids: Tensor, count: int, read: Prefills[Tensor] | None = None) -> Tensor:
    """Return the last hidden states [count + 1, d] of a text [1, n], whose last `count` tokens come in calls that read.

    The first state is that of the last token before them. `read` gives the cache of what is before them; by default
    the row reads it for itself.
    """
    (cache, last), cached = (read or begun(model, [row], ids, count)).under(row), ids.shape[1] - count
    found = [last]
    with row.variant.on(model):
        for call in ids[:, cached:].split(SHORT, 1):
            found += _states(model, call, cache, cached)
            cached += call.shape[1]
    return torch.cat(found)


def begun(model: Any, rows: Sequence[Row], ids: Tensor, count: int) -> Prefills[Tensor]:
    """Return what reads a text but for its last `count` tokens, for each of some rows, and its last state [1, d]."""
    begin = ids.shape[1] - count
    return Prefills(model, rows, ids.shape[1], lambda cache: _states(model, ids[:, :begin], cache, 0)[-1][-1:])


def _states(model: Any, ids: Tensor, cache: Any, cached: int) -> list[Tensor]:
    """Return the last hidden states of new tokens [1, new], in the parts in which they are given."""
    return [hidden_of(model, part, cache, **where) for part, where in parts(model, ids, cached)]


TASKS = (Decoded("decoded", ("perplexity decoded", "KL decoded"), 0, "windows of held-out text, their ends decoded"),)
