"""Compress one prefill in the ways of several presses of kvpress, in the environment of `make peers-env`.

A press never changes what a prefill computes, so one prefill serves all: each press is handed the same keys and values.
`press.py` checks on a short text that this gives what kvpress gives by itself.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    CriticalKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KVzipPress,
    SnapKVPress,
    StreamingLLMPress,
)
from torch import Tensor
from transformers import DynamicCache

METHODS: dict[str, Callable[[float], BasePress]] = {
    "StreamingLLM": StreamingLLMPress,
    "SnapKV": SnapKVPress,
    "ExpectedAttention": ExpectedAttentionPress,
    "KeyDiff": KeyDiffPress,
    "CriticalKV": lambda ratio: CriticalKVPress(ExpectedAttentionPress(ratio, use_vnorm=False)),
    "AdaKV": lambda ratio: AdaKVPress(ExpectedAttentionPress(ratio)),
    "KVzip": KVzipPress,
}
"""From a compression ratio to a press, with kvpress's own defaults."""

Layer = tuple[Tensor, Tensor, Any]
"""Keys and values [1, heads, n, size], and the indices of the entries that are masked; None where none are."""


@dataclass
class Kept:
    """What a row keeps of a context, layer by layer."""

    layers: list[Layer]

    def cache(self, model: Any) -> DynamicCache:
        """Return a cache of it that may grow, and mask its entries in the model, which serves one cache at a time."""
        cache = DynamicCache()
        for i, (keys, values, masked) in enumerate(self.layers):
            cache.update(keys, values, i)
            model.model.layers[i].self_attn.masked_key_indices = masked
        return cache

    def nbytes(self) -> dict[str, int]:
        """Return the bytes that are allocated, and those of entries that are not masked."""
        allocated = sum(keys.nbytes + values.nbytes for keys, values, _ in self.layers)
        masked = sum(
            len(masked[0]) * (keys.shape[-1] + values.shape[-1]) * keys.element_size()
            for keys, values, masked in self.layers
            if masked is not None
        )
        return {"cache_bytes": allocated, "kept_bytes": allocated - masked}


class Beside(BasePress):
    """Hands one prefill's keys and values to several presses, and leaves its own cache whole."""

    def __init__(self, presses: Mapping[str, BasePress]) -> None:
        self.presses = presses
        self.found: dict[str, list[Layer]] = {name: [] for name in presses}

    def post_init_from_model(self, model: Any) -> None:
        for press in self.presses.values():
            press.post_init_from_model(model)

    def compress(self, module: Any, *given: Any) -> tuple[Tensor, Tensor]:
        _, keys, values, *_ = given
        for name, press in self.presses.items():
            module.masked_key_indices = None
            kept = press.compress(module, *given)
            self.found[name].append((*kept, module.masked_key_indices))
        module.masked_key_indices = None
        return keys, values


class Replayed(KVzipPress):
    """KVzip at several ratios with the scores of one replay."""

    def __init__(self, ratios: Mapping[str, float]) -> None:
        super().__init__(max(ratios.values()))
        self.ratios = ratios
        self.masked: dict[str, list[Any]] = {}

    def compress_post(self, model: Any) -> None:
        for name, ratio in self.ratios.items():
            self.compression_ratio = ratio
            super().compress_post(model)
            self.masked[name] = [layer.self_attn.masked_key_indices for layer in model.model.layers]


def compressed(model: Any, rows: Mapping[str, Any], ids: Tensor) -> tuple[Tensor, dict[str, Kept]]:
    """Return the logits after a text [1, n], and what every row keeps of it.

    Args:
        model: The model.
        rows: By name, `method` and `ratio`; None for the model as it comes.
        ids: The text.
    """
    own = {name: row for name, row in rows.items() if row is not None}
    zipped = {name: row["ratio"] for name, row in own.items() if row["method"] == "KVzip"}
    beside = Beside({n: METHODS[row["method"]](row["ratio"]) for n, row in own.items() if n not in zipped})
    cache, replayed = DynamicCache(), Replayed(zipped) if zipped else None
    with ExitStack() as stack:
        if replayed is not None:
            stack.enter_context(replayed(model))
        with beside(model):
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
        whole = [(layer.keys, layer.values) for layer in cache.layers]
    found = dict(beside.found)
    for name in zipped:
        found[name] = [(*pair, masked) for pair, masked in zip(whole, replayed.masked[name], strict=True)]
    dense = [(*pair, None) for pair in whole]
    return logits, {name: Kept(found.get(name, dense)) for name in rows}


def alone(model: Any, row: Any, ids: Tensor) -> DynamicCache:
    """Return the cache of a text [1, n] that kvpress itself has compressed; masked entries stay masked in the model."""
    cache = DynamicCache()
    with ExitStack() as stack:
        if row is not None:
            stack.enter_context(METHODS[row["method"]](row["ratio"])(model))
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def same(model: Any, kept: Kept, cache: DynamicCache) -> bool:
    """Return whether a row keeps what is in a cache and unmasked in the model."""

    def equal(mine: Layer, other: Any, masked: Any) -> bool:
        alike = (mine[2] is None) == (masked is None) and torch.equal(mine[0], other.keys)
        alike = alike and torch.equal(mine[1], other.values)
        return alike and (masked is None or all(torch.equal(a, b) for a, b in zip(mine[2], masked, strict=True)))

    modules = [layer.self_attn for layer in model.model.layers]
    masks = [getattr(module, "masked_key_indices", None) for module in modules]
    return all(map(equal, kept.layers, cache.layers, masks))
