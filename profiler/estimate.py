"""Estimate what a profile run will cost before it starts."""

import random
import time
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from moa.hf.logits import HEAD_CHUNK
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.backward import dense_hidden, run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.recorder import recording
from moa.profiler.settings import Settings, Task

PROBES = (128, 512)
"""Lengths that are timed."""


def seconds(
    model: PreTrainedModel, tokenizer: Any, settings: Settings, todo: Sequence[Task], plan: Plan | None = None
) -> float:
    """Return the time for `todo`, from two short passes and a linear plus a quadratic term in the length."""
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    took = []
    with recording(model, settings.variants, plan=plan) as recorder:
        for n in (PROBES[0], *PROBES):  # the first pass only warms up
            sample = whole_text([rng.randrange(model.config.get_text_config().vocab_size) for _ in range(n)])
            start = time.perf_counter()
            dense = dense_hidden(model, sample, recorder) if settings.loss == "kl" else None
            run_backward(model, sample, "given", settings.loss or "nll", generator, dense)
            recorder.take()
            took.append(time.perf_counter() - start)
    (a, b), (x, y) = PROBES, took[1:]
    quadratic = max(0.0, (y / b - x / a) / (b - a))
    linear = max(0.0, x / a - quadratic * a)
    return sum(linear * task.length + quadratic * task.length**2 for task in todo)


def peak_bytes(model: PreTrainedModel, length: int, used: int | None = None) -> int:
    """Return the peak memory of one pass: checkpointed layer inputs, one layer's activations, a tile, logits.

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
    tile = 8 * info.group_size * 64 * length * 4
    logits = 4 * HEAD_CHUNK * config.vocab_size * 4
    return int(used + layers + layer + tile + logits)
