"""Fill caches without a prefill of their own: with random keys, or with those of a text that was read once.

The time of a step depends on how much it reads, not on what it reads. But which pages a step of a plan with `read`
chooses depends on the keys and the query, so its steps are timed on a text's.
"""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache

from moa.hf.text import prose
from moa.hf.tokens import start
from moa.kernels.backend import Backend, load
from moa.kernels.registry import ANYWHERE
from moa.kernels.softmax import Softmax
from moa.plans.model import ModelInfo
from moa.runtime import stock
from moa.runtime.cache import KVCache
from moa.runtime.variant import Variant


@dataclass(frozen=True)
class Context:
    """A text that the dense model has read.

    Attributes:
        ids: Its token ids [1, n].
        cache: What the model kept of it.
    """

    ids: Tensor
    cache: Cache

    @classmethod
    @torch.inference_mode()
    def read(cls, model: Any, ids: Tensor) -> "Context":
        """Let the model, which is under no plan, read the text [1, n]."""
        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cls(ids, cache)


def held_out(tokenizer: Any, length: int) -> Tensor:
    """Return held-out text, repeated where there is less of it: ids [1, length]."""
    first = start(tokenizer)
    return torch.tensor([first + prose(tokenizer, length - len(first), random.Random(0), "evaluation")])


def filled(
    model: Any, variant: Variant, length: int, batch: int, *, room: int | None = None, context: Context | None = None
) -> Any:
    """Return a cache of the variant that `fill` has filled, with room for `room` tokens if it is fixed."""
    cache = variant.cache(model, room or length)
    fill(cache, model, length, batch, context)
    return cache


def fill(cache: Cache, model: Any, length: int, batch: int = 1, context: Context | None = None) -> None:
    """Give an empty cache `length` tokens, the same in every sequence: random ones, or a text's where rules are.

    Layers that keep states get those of a short text, whose size is the same.
    Sinks of every pattern hold the first keys: which keys a sink holds does not change the time of a step.

    Args:
        cache: A `KVCache`, `DynamicCache` or `StaticCache` of the model.
        model: The model, not under a plan.
        length: Number of tokens per sequence.
        batch: Number of sequences.
        context: A text of at least `length` tokens.
    """
    info = ModelInfo.of(model)
    kind = {"dtype": model.dtype, "device": model.device}
    writer = load(ANYWHERE.name)
    store_only = Backend(writer.name, lambda q, *_, **__: q, writer.append, writer.decode, read=writer.read)
    drawn: dict[tuple[int, ...], list[Tensor]] = {}  # random keys and values by shape: drawing them takes longest
    if info.stateful_layers:
        short = DynamicCache(config=model.config)
        model(torch.zeros(batch, 2, dtype=torch.int64, device=model.device), past_key_values=short, use_cache=True)
        for layer in info.stateful_layers:
            stock.give_state(short.layers[layer], cache.layers[layer])
    for layer in info.keyed_layers:
        heads, *sizes = shape = info.kv_shape(layer)
        if context is not None and layer in info.ruled_layers:
            kept = context.cache.layers[layer]
            k, v = (x[:, :, :length].expand(batch, -1, -1, -1) for x in (kept.keys, kept.values))
        else:
            if shape not in drawn:
                drawn[shape] = [torch.randn((1, heads, length, size), **kind) for size in sizes]
            k, v = (x.expand(batch, -1, -1, -1) for x in drawn[shape])
        staged, _ = cache.update(k, v, layer)
        if isinstance(cache, KVCache) and layer in info.ruled_layers:
            own = cache.layers[layer]
            own.sinks, sinks = None, own.sinks  # what they hold would take a prefill to find
            for _ in range(own.rules.readers):
                staged.attend(k, None, softmax=Softmax(1.0), backend=store_only)
            own.sinks = sinks
            if sinks is not None:
                sinks.folded.copy_(torch.from_numpy(own.rules.first(np.full(batch, length - 1))))
