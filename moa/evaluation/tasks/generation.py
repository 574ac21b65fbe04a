"""Measure how far a plan's generation strays: the dense model's own long answer, decoded step by step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import torch

from moa.evaluation.greedy import last_logits
from moa.evaluation.rows import Row
from moa.evaluation.tasks.decoded import begun, decoded
from moa.evaluation.tasks.task import Task
from moa.evaluation.tasks.text import against, hidden_by, sampled

TOKENS = 1000
"""The most tokens that are generated; at most half of the length."""
PARTS = 8
"""Agreement and KL are reported in as many parts of the generated text."""


@dataclass(frozen=True)
class Begun:
    """A text to continue, and by how many tokens."""

    ids: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Generation(Task):
    """The dense model continues held-out text greedily; each row decodes the same tokens and is compared after each.

    Up to the first token that a row would have chosen otherwise, this is what the row itself generates.
    """

    dense_besides = True

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Begun]:
        """Return texts that leave room for the generated tokens; the seed changes nothing.

        Raises:
            MoaError: The held-out text is too short for so many.
        """
        tokens = min(TOKENS, length // 2)
        return [Begun(tuple(window[: length - tokens]), tokens) for window in sampled(tokenizer, length, count)]

    @torch.inference_mode()
    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: Begun
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield how often a row agrees with the dense model's choice, KL(dense || row) by part, and where it strays."""
        count = content.tokens
        new = generated(model, content)
        ids = torch.tensor([[*content.ids, *new[:-1]]], device=model.device)
        wanted = torch.tensor(new, device=model.device)
        dense = hidden_by(model, Row("dense", None), ids)[-count:]
        read = begun(model, rows, ids, count - 1)
        for row in rows:
            found = dense if row.plan is None else decoded(model, row, ids, count - 1, read)
            kl, _, agrees = against(model, dense, found, wanted)
            strays = (~agrees).nonzero()
            yield row, {
                "kl": [float(part.mean()) for part in kl.tensor_split(PARTS)],
                "agrees": [float(part.double().mean()) for part in agrees.tensor_split(PARTS)],
                "first": int(strays[0, 0]) if len(strays) else count,
            }  # fmt: skip

    def score(self, contents: Sequence[Begun], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return means over all texts and by part, and the median of the tokens before a row strays."""
        kl, agrees = (np.array([r[name] for r in results]).mean(0) for name in ("kl", "agrees"))
        return {
            "texts": len(results), "tokens": contents[0].tokens, "agreement": fmean(agrees), "kl": fmean(kl),
            "agreement_by_part": agrees.tolist(), "kl_by_part": kl.tolist(),
            "first": median(r["first"] for r in results),
        }  # fmt: skip

    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return agreement, KL, and the tokens before the first other choice."""
        return [f"{score['agreement']:.3f}", f"{score['kl']:.4f}", f"{score['first']:,.0f}"]


@torch.inference_mode()
def generated(model: Any, begun: Begun) -> list[int]:
    """Return the dense model's greedy tokens; the text goes on behind an end token, as a benchmark's does."""
    cache, new, cached = Row("dense", None).variant.cache(model, len(begun.ids) + begun.tokens), list(begun.ids), 0
    out: list[int] = []
    while len(out) < begun.tokens:
        out.append(int(last_logits(model, cache, new, cached).argmax()))
        cached, new = cached + len(new), out[-1:]
    return out


TASKS = (
    Generation(
        "generation", ("agreement", "KL generated", "tokens that agree"), 0, "held-out texts to continue",
    ),
)  # fmt: skip
