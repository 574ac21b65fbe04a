"""Measure how a plan changes the model on text held out from calibration: the figures that a study judges it by."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moa.evaluation.rows import Row
from moa.evaluation.tasks.decoded import decoded, tail
from moa.evaluation.tasks.text import against, windows
from moa.hf.chat import has_template
from moa.hf.limits import check_length
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.reading import SHORT
from moa.profiler.backward import response_hidden
from moa.profiler.calibration import Sample, whole_text
from moa.profiler.sources import DEFAULT, SOURCES
from moa.runtime.applied import apply
from moa.runtime.attention import Backends
from moa.search.study import Measured

TASKS = tuple(name for name in DEFAULT if SOURCES[name].recalls)
"""Generated tasks that are asked, by turns with text."""


class Validation:
    """Measures plans against the dense model, always on the same samples; a callable that a study takes.

    Text is the `validation` part of the built-in text (`moa.hf.text`); tasks are of the kinds that calibration
    uses, with other draws. Neither contains what `moa eval` asks about.

    With `reads`, what is measured comes behind a cached prefill, in calls of as few tokens as read: of text the end, as
    in the evaluation's task `decoded`, and of tasks everything from the end of the first question.
    """

    def __init__(
        self, model: Any, tokenizer: Any, length: int, *, texts: int = 4, backend: str | None = None, seed: int = 0,
        reads: bool = False,
    ) -> None:  # fmt: skip
        """Draw the samples and run the dense model on them.

        Args:
            model: The dense model.
            tokenizer: Its tokenizer.
            length: Tokens of every sample.
            texts: Number of windows of text (fewer where the text has no more), and of contexts of tasks, which take
                turns.
            backend: Back-end that plans run on, None for the device's own.
            seed: Seed of the tasks.
            reads: Whether plans are measured as decoding runs them, since some may read less than they keep.

        Raises:
            MoaError: The model or the text does not reach the length.
            Unsupported: The back-end cannot read less than is kept, and `reads`.
        """
        if reads:
            Backends(backend, reads=True).on(model.device)
        check_length(model, length)
        found = windows(tokenizer, length, texts, "validation")
        if not found:
            raise MoaError(f"text for validation has no window of {length} tokens: give a shorter --validate-length")
        chat = has_template(tokenizer)
        self.model, self.length, self.backend, self.reads = model, length, backend, reads
        self._samples: list[tuple[str, Sample]] = []
        for i, ids in enumerate(found):
            task = TASKS[i % len(TASKS)]
            rng = random.Random(f"validation/{seed}/{length}/{i}")
            text = Sample(tuple(ids), tuple(range(length - tail(ids), length))) if reads else whole_text(ids)
            self._samples += [("text", text), (task, SOURCES[task].sample(tokenizer, length, rng, chat))]
        self._dense = [self._hidden(sample) for _, sample in self._samples]

    def __call__(self, plan: Plan) -> Iterator[Measured]:
        """Yield the means over the samples so far after each pair of a window of text and a task."""
        rows: dict[str, list[Tensor]] = {"kl": [], "recall": [], "right": []}
        for (kind, sample), dense in zip(self._samples, self._dense, strict=True):
            hidden = self._decoded(sample, plan) if self.reads else self._under(sample, plan)
            given = torch.tensor(sample.ids, device=hidden.device)[list(sample.response)]
            kl, _, right = against(self.model, dense, hidden, given)
            if kind == "text":
                rows["kl"].append(kl)
                continue
            rows["recall"].append(kl)
            rows["right"].append(right.float())
            yield Measured(**{name: float(torch.cat(x).mean()) for name, x in rows.items()})

    def _under(self, sample: Sample, plan: Plan) -> Tensor:
        with apply(self.model, plan, self.backend):
            return self._hidden(sample)

    def _decoded(self, sample: Sample, plan: Plan) -> Tensor:
        """Return the hidden states that `_under` does, as decoding gives them."""
        begin = max(1, min(sample.response) - SHORT)
        ids = torch.tensor([sample.ids], device=self.model.device)
        found = decoded(self.model, Row("plan", plan, self.backend), ids, len(sample.ids) - begin)
        return found[torch.tensor(sample.response, device=found.device) - begin]

    @torch.inference_mode()
    def _hidden(self, sample: Sample) -> Tensor:
        return response_hidden(self.model, sample)
