"""Measure how a plan changes the model on text held out from calibration: the figures that a study judges it by."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moa.evaluation.tasks.text import against, windows
from moa.hf.chat import has_template
from moa.hf.limits import check_length
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.profiler.backward import response_hidden
from moa.profiler.calibration import Sample, whole_text
from moa.profiler.sources import DEFAULT, SOURCES
from moa.runtime.applied import apply
from moa.search.study import Measured

TASKS = tuple(name for name in DEFAULT if SOURCES[name].recalls)
"""Generated tasks that are asked, by turns with text."""


class Validation:
    """Measures plans against the dense model, always on the same samples; a callable that a study takes.

    Text is the `validation` part of the built-in text (`moa.hf.text`); tasks are of the kinds that calibration
    uses, with other draws. Neither contains what `moa eval` asks about.
    """

    def __init__(
        self, model: Any, tokenizer: Any, length: int, *, texts: int = 4, backend: str | None = None, seed: int = 0
    ) -> None:
        """Draw the samples and run the dense model on them.

        Args:
            model: The dense model.
            tokenizer: Its tokenizer.
            length: Tokens of every sample.
            texts: Number of windows of text (fewer where the text has no more), and of contexts of tasks, which take
                turns.
            backend: Back-end that plans run on, None for the device's own.
            seed: Seed of the tasks.

        Raises:
            MoaError: The model or the text does not reach the length.
        """
        check_length(model, length)
        found = windows(tokenizer, length, texts, "validation")
        if not found:
            raise MoaError(f"text for validation has no window of {length} tokens: give a shorter --validate-length")
        chat = has_template(tokenizer)
        self.model, self.length, self.backend = model, length, backend
        self._samples: list[tuple[str, Sample]] = []
        for i, ids in enumerate(found):
            task = TASKS[i % len(TASKS)]
            rng = random.Random(f"validation/{seed}/{length}/{i}")
            self._samples += [("text", whole_text(ids)), (task, SOURCES[task].sample(tokenizer, length, rng, chat))]
        self._dense = [self._hidden(sample) for _, sample in self._samples]

    def __call__(self, plan: Plan) -> Iterator[Measured]:
        """Yield the means over the samples so far after each pair of a window of text and a task."""
        rows: dict[str, list[Tensor]] = {"kl": [], "recall": [], "right": []}
        for (kind, sample), dense in zip(self._samples, self._dense, strict=True):
            with apply(self.model, plan, self.backend):
                hidden = self._hidden(sample)
            given = torch.tensor(sample.ids, device=hidden.device)[list(sample.response)]
            kl, _, right = against(self.model, dense, hidden, given)
            if kind == "text":
                rows["kl"].append(kl)
                continue
            rows["recall"].append(kl)
            rows["right"].append(right.float())
            yield Measured(**{name: float(torch.cat(x).mean()) for name, x in rows.items()})

    @torch.inference_mode()
    def _hidden(self, sample: Sample) -> Tensor:
        return response_hidden(self.model, sample)
