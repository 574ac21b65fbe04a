"""Measure perplexity and KL divergence on held-out text as decoding sees it: token by token behind a cached text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moa.evaluation.rows import Row
from moa.evaluation.tasks.text import Text, by_part, hidden_by
from moa.hf.calls import parts
from moa.hf.logits import hidden_of
from moa.plans.reading import SHORT

TAIL = 1024
"""The most tokens at a window's end that are decoded; at most half of the window."""


@dataclass(frozen=True)
class Decoded(Text):
    """The windows of `Text`, whose last tokens are given in calls of as few tokens as read under plans that read."""

    @torch.inference_mode()
    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: list[int]
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's negative log-likelihood and KL, by quarter of the tokens that are decoded."""
        ids = torch.tensor([content], device=model.device)
        dense = hidden_by(model, Row("dense", None), ids)[-_tail(content) :]
        for row in rows:
            found = dense if row.plan is None else decoded(model, row, ids, len(dense))[1:]
            yield row, by_part(model, dense, found, ids)


def _tail(content: Sequence[int]) -> int:
    return min(TAIL, len(content) // 2)


def decoded(model: Any, row: Row, ids: Tensor, tail: int) -> Tensor:
    """Return the last hidden states [tail + 1, d] of a text [1, n], whose last `tail` tokens come in calls that read.

    The first state is that of the last token before them.
    """
    begin, found = ids.shape[1] - tail, []
    with row.variant.on(model):
        cache, cached = row.variant.cache(model, ids.shape[1]), 0
        for call in (ids[:, :begin], *ids[:, begin:].split(SHORT, 1)):
            for part, where in parts(model, call, cached):
                found.append(hidden_of(model, part, cache, **where))
            cached += call.shape[1]
    return torch.cat(found)[-tail - 1 :]


TASKS = (Decoded("decoded", ("perplexity decoded", "KL decoded"), 0, "windows of held-out text, their ends decoded"),)
