"""Time dense and planned models in turn, on caches filled without a prefill; measure the process's peak memory."""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from moa.bench.filling import Context, filled
from moa.hf.calls import parts
from moa.runtime.variant import Variant
from moa.search.spread import iqr

STEPS = 5
"""Decode steps that are timed at a time."""


@dataclass(frozen=True)
class Times:
    """The seconds that one thing took, measured several times."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def iqr(self) -> float:
        """The distance between the quartiles, as a share of the median."""
        return iqr(self.seconds)

    def summary(self) -> dict[str, Any]:
        """Return the entry of the times in results: `median`, `iqr` and all `seconds`."""
        return {"median": self.median, "iqr": self.iqr, "seconds": list(self.seconds)}


def alternate(calls: Mapping[str, Callable[[], Sequence[float]]], rounds: int) -> dict[str, Times]:
    """Run every call in turn, `rounds` times over, so that drift of the machine affects all alike.

    Args:
        calls: The calls, by name; each returns the seconds that it took, once or several times.
        rounds: Number of rounds, at least 1.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name] += call()
    return {name: Times(tuple(seconds)) for name, seconds in taken.items()}


@torch.inference_mode()
def prefill(model: Any, variant: Variant, ids: Tensor) -> list[float]:
    """Return the seconds of one forward call over `ids` [batch, n] into an empty cache, with the last logits alone."""
    with variant.on(model):
        cache = variant.cache(model, ids.shape[1] + 1)
        return [timed(lambda: model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1), model.device)]


@torch.inference_mode()
def decode(
    model: Any, variant: Variant, length: int, batch: int, *, steps: int = STEPS, context: Context | None = None
) -> list[float]:
    """Return the seconds of each of `steps` decode steps, after one that is not counted.

    Args:
        model: The model.
        variant: How to run it.
        length: Number of tokens that each sequence has before.
        batch: Number of sequences.
        steps: Number of steps to time.
        context: A text of at least `length` + `steps` + 1 tokens, for plans that read less than they keep; by default
            the tokens before are random.
    """
    cache = filled(model, variant, length, batch, room=length + steps + 1, context=context)
    return decode_from(cache, model, variant, batch, steps, context)


@torch.inference_mode()
def decode_from(
    cache: Cache, model: Any, variant: Variant, batch: int, steps: int, context: Context | None = None
) -> list[float]:
    """Return what `decode` does, for a cache made by `filled` with room for `steps` + 1 more tokens."""
    tokens, cached = torch.zeros(batch, steps + 1, dtype=torch.int64, device=model.device), int(cache.get_seq_length())
    if context is not None:
        tokens = context.ids[:, cached : cached + steps + 1].expand(batch, -1)
    calls = [call for i in range(steps + 1) for call in parts(model, tokens[:, i : i + 1], cached + i)]
    with variant.on(model):
        taken = [
            timed(partial(model, token, past_key_values=cache, use_cache=True, **where), model.device)
            for token, where in calls
        ]
    return taken[1:]


@torch.inference_mode()
def disagreement(model: Any, variant: Variant, ids: Tensor, new: int = 4) -> float:
    """Return how far a variant's logits are from the reference's: the largest difference over their standard deviation.

    The reference runs the whole text at once, without a cache: the model as it comes, or back-end `reference`. If the
    plan reads less than it keeps, back-end `reference` runs the same calls.

    Args:
        model: The model.
        variant: How to run it: it prefills all but the last `new` tokens, then reads those one by one.
        ids: Token ids [1, n].
        new: Number of tokens read one by one.
    """
    exact = Variant(variant.plan, backend="reference")
    if variant.plan is not None and variant.plan.reads():
        expected = _one_by_one(model, exact, ids, new)
    else:
        with exact.on(model):
            expected = model(ids, use_cache=False, logits_to_keep=new + 1).logits[0]
    found = _one_by_one(model, variant, ids, new)
    return float((found - expected).abs().max() / expected.std())


def _one_by_one(model: Any, variant: Variant, ids: Tensor, new: int) -> Tensor:
    """Return the logits [new + 1, vocabulary] of a prefill's last token and of the `new` tokens behind it."""
    begin, n = ids.shape[1] - new, ids.shape[1]
    with variant.on(model):
        cache = variant.cache(model, n)
        calls = [*parts(model, ids[:, :begin], 0)]
        for cached in range(begin, n):
            calls += parts(model, ids[:, cached : cached + 1], cached)
        return torch.cat(
            [
                model(part, past_key_values=cache, use_cache=True, logits_to_keep=1, **where).logits[0]
                for part, where in calls
            ]
        )


def peak_bytes(device: torch.device) -> int:
    """Return the peak of memory since `reset_peak`: on a GPU what torch allocated, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # getrusage would also count the memory that a parent had when it started this process
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak(device: torch.device) -> None:
    """Reset the peak of memory; only Linux can reset that of resident memory, elsewhere it covers the whole process.

    Freed memory that the C library has kept goes back to the system first, since it would count as memory in use.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
        if trim is not None:
            trim(0)
        Path("/proc/self/clear_refs").write_text("5")


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that `call` takes, including what it left running on the device."""
    _wait(device)
    begin = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
