"""Time dense and planned models in turn, on caches filled without a prefill; measure the process's peak memory.

The time of a step depends on how much a cache holds, not on what it holds. So decoding is timed on random keys.
"""

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

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from moa.hf.calls import parts
from moa.kernels.backend import Backend, load
from moa.kernels.registry import ANYWHERE
from moa.kernels.softmax import Softmax
from moa.plans.model import ModelInfo
from moa.runtime import stock
from moa.runtime.cache import KVCache
from moa.runtime.variant import Variant
from moa.search.spread import iqr


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
def decode(model: Any, variant: Variant, length: int, batch: int, *, steps: int = 5) -> list[float]:
    """Return the seconds of each of `steps` decode steps, after one that is not counted.

    Args:
        model: The model.
        variant: How to run it.
        length: Number of random tokens that each sequence has before.
        batch: Number of sequences.
        steps: Number of steps to time.
    """
    return decode_from(filled(model, variant, length, batch, room=length + steps + 1), model, variant, batch, steps)


@torch.inference_mode()
def decode_from(cache: Cache, model: Any, variant: Variant, batch: int, steps: int) -> list[float]:
    """Return what `decode` does, for a cache made by `filled` with room for `steps` + 1 more tokens."""
    tokens, cached = torch.zeros(batch, steps + 1, dtype=torch.int64, device=model.device), int(cache.get_seq_length())
    calls = [call for i in range(steps + 1) for call in parts(model, tokens[:, i : i + 1], cached + i)]
    with variant.on(model):
        taken = [
            timed(partial(model, token, past_key_values=cache, use_cache=True, **where), model.device)
            for token, where in calls
        ]
    return taken[1:]


def filled(model: Any, variant: Variant, length: int, batch: int, *, room: int | None = None) -> Any:
    """Return a cache of the variant that holds `length` random tokens of each sequence, with `room` more if fixed."""
    cache = variant.cache(model, room or length)
    fill(cache, model, length, batch)
    return cache


def fill(cache: Cache, model: Any, length: int, batch: int = 1) -> None:
    """Give an empty cache `length` tokens of random keys and values, the same in every sequence and layer.

    Layers that keep states get those of a short text, whose size is the same.
    Sinks of every pattern hold the first keys: which keys a sink holds does not change the time of a step.

    Args:
        cache: A `KVCache`, `DynamicCache` or `StaticCache` of the model.
        model: The model, not under a plan.
        length: Number of tokens per sequence.
        batch: Number of sequences.
    """
    info = ModelInfo.of(model)
    kind = {"dtype": model.dtype, "device": model.device}
    writer = load(ANYWHERE.name)
    store_only = Backend("none", lambda q, *_, **__: q, writer.append, writer.decode, read=writer.read)
    drawn: dict[tuple[int, int], Tensor] = {}  # random keys and values by shape: drawing them takes longest
    if info.stateful_layers:
        short = DynamicCache(config=model.config)
        model(torch.zeros(batch, 2, dtype=torch.int64, device=model.device), past_key_values=short, use_cache=True)
        for layer in info.stateful_layers:
            stock.give_state(short.layers[layer], cache.layers[layer])
    for layer in info.keyed_layers:
        shape = info.kv_shape(layer)
        if shape not in drawn:
            drawn[shape] = torch.randn((2, 1, shape[0], length, shape[1]), **kind)
        k, v = drawn[shape].expand(-1, batch, -1, -1, -1)
        staged, _ = cache.update(k, v, layer)
        if isinstance(cache, KVCache) and layer in info.ruled_layers:
            own = cache.layers[layer]
            own.sinks, sinks = None, own.sinks  # what they hold would take a prefill to find
            for _ in range(own.rules.readers):
                staged.attend(k, None, softmax=Softmax(1.0), backend=store_only)
            own.sinks = sinks
            if sinks is not None:
                sinks.folded[:] = own.rules.first(np.full(batch, length - 1))


@torch.inference_mode()
def disagreement(model: Any, variant: Variant, ids: Tensor, new: int = 4) -> float:
    """Return how far a variant's logits are from the reference's: the largest difference over their standard deviation.

    The reference runs the whole text at once, without a cache: the model as it comes, or back-end `reference`.

    Args:
        model: The model.
        variant: How to run it: it prefills all but the last `new` tokens, then reads those one by one.
        ids: Token ids [1, n].
        new: Number of tokens read one by one.
    """
    with Variant(variant.plan, backend="reference").on(model):
        expected = model(ids, use_cache=False, logits_to_keep=new + 1).logits[0]
    with variant.on(model):
        cache, begin = variant.cache(model, ids.shape[1]), ids.shape[1] - new
        calls = [*parts(model, ids[:, :begin], 0)]
        for cached in range(begin, ids.shape[1]):
            calls += parts(model, ids[:, cached : cached + 1], cached)
        found = torch.cat(
            [
                model(part, past_key_values=cache, use_cache=True, logits_to_keep=1, **where).logits[0]
                for part, where in calls
            ]
        )
    return float((found - expected).abs().max() / expected.std())


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
