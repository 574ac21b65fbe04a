"""Estimate what a profile run takes: its memory before it starts, its time from the first samples on."""

import random
import time
from collections.abc import Callable, Iterable
from statistics import median

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from moa.hf.logits import HEAD_CHUNK
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.backward import dense_hidden, run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.profile import bin_size
from moa.profiler.recorder import recording
from moa.profiler.settings import Settings, Task

SHORT = 128
"""Tokens of a pass that only warms up."""
GROWTH = 1.5
"""Power of the length by which a sample's time is taken to grow; the true one is between 1 and 2."""


class Pace:
    """Tells how much time is left, from the samples that were measured in this run."""

    def __init__(self, left: Iterable[Task], clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with the samples still to be measured; `clock` gives seconds."""
        self._left, self._clock = list(left), clock
        self._took: dict[int, list[float]] = {}
        self._before: float | None = None

    def after(self, task: Task) -> float | None:
        """Return the seconds left after the first measured sample of each length; None after any other sample.

        The run's very first sample tells nothing, since it also pays for what is done once.
        """
        now, before = self._clock(), self._before
        self._before = now
        if task in self._left:
            self._left.remove(task)
        if before is None:
            return None
        first = task.length not in self._took
        self._took.setdefault(task.length, []).append(now - before)
        return sum(map(self._expected, self._left)) if first and self._left else None

    def _expected(self, task: Task) -> float:
        """Return the seconds for a sample, from those of the measured length that is nearest to its own."""
        near = min(self._took, key=lambda n: abs(n - task.length))
        growth: float = (task.length / near) ** GROWTH
        return median(self._took[near]) * growth


def warm_up(model: PreTrainedModel, settings: Settings, plan: Plan | None = None) -> None:
    """Run one short pass, so that the process holds what every pass needs besides the weights."""
    run_pass(model, settings, SHORT, plan)


def run_pass(model: PreTrainedModel, settings: Settings, length: int, plan: Plan | None = None) -> float:
    """Run a pass over `length` random tokens, measuring as a sample is measured, and return its seconds."""
    before = time.perf_counter()
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    sample = whole_text([rng.randrange(model.config.get_text_config().vocab_size) for _ in range(length)])
    with recording(model, settings.variants, plan=plan) as recorder:
        dense = dense_hidden(model, sample, recorder) if settings.loss == "kl" else None
        run_backward(model, sample, "given", settings.loss or "nll", generator, dense)
        recorder.take()  # on the CPU: a device has finished by then
    return time.perf_counter() - before


def peak_bytes(model: PreTrainedModel, length: int, used: int | None = None) -> int:
    """Return the peak memory of one pass: checkpointed layer inputs, one layer's activations, a tile, logits.

    Where layers share keys, also a variant's table by single rows, its sum over layers and their squares.

    Args:
        model: The model.
        length: Length of the pass, in tokens.
        used: Bytes in use apart from the pass; by default the weights alone.
    """
    config, info = model.config.get_text_config(), ModelInfo.of(model)
    size, width = model.dtype.itemsize, config.hidden_size
    if used is None:
        used = sum(p.numel() * p.element_size() for p in model.parameters())
    layers = info.layers * length * width * size
    blocks = (m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    widest = max((max(p.shape[-2:]) for block in blocks for p in block.parameters() if p.ndim > 1), default=4 * width)
    layer = length * (8 * width + 4 * widest) * size
    if info.latent:  # queries as they meet latents, what they mix, and gradients of both
        layer += 4 * length * info.query_heads * info.head_size * size
    tile = 8 * info.group_size * 64 * length * 4
    rows = 3 * info.kv_heads * length * -(-length // bin_size(length)) * 4 if info.shared else 0
    logits = 4 * HEAD_CHUNK * config.vocab_size * 4
    return int(used + layers + layer + tile + rows + logits)
