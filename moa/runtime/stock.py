"""Make the cache layers of transformers' own, which a `KVCache` holds for the layers without rules."""

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig, StaticCache
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from moa.plans.config import SHARED
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo
from moa.runtime.layer import PlanLayer


def layers(model: ModelInfo, max_length: int | None) -> list[Any]:
    """Return transformers' cache layers for all layers of a model of this shape, also for those with rules.

    Args:
        model: The shape.
        max_length: As for `KVCache`.
    """
    window = model.sliding.window if model.sliding else None
    # Transformers' checks know one name of layers that keep nothing.
    kinds = ["moe" if kind in ("mlp", SHARED) else kind for kind in model.kinds]
    config = PretrainedConfig(
        num_hidden_layers=model.layers, layer_types=kinds, sliding_window=window, attention_chunk_size=window
    )
    cache = DynamicCache(config=config) if max_length is None else StaticCache(config=config, max_cache_len=max_length)
    return list(cache.layers)


def batch_size(cache: Cache) -> int | None:
    """Return the number of sequences that a cache holds or has memory for; None while it has none."""
    for layer in cache.layers:
        keys = getattr(layer, "keys", None)
        size = getattr(layer, "batch_size", None) if keys is None or keys.ndim < 4 else len(keys)
        if size is not None and getattr(layer, "is_initialized", True):
            return int(size)
    return None


def check_states(cache: Cache, model: ModelInfo) -> None:
    """Refuse a cache that has no state for a layer that keeps one, such as a `DynamicCache()` without a config.

    Raises:
        Unsupported: It has none.
    """
    if isinstance(cache, DynamicCache):
        for i in model.stateful_layers:
            if not has_state(cache.layers[i] if i < len(cache.layers) else None):
                raise Unsupported(
                    f"a cache whose layers are not the model's: layer {i} keeps a state; pass moa.KVCache(plan) or "
                    "DynamicCache(config=model.config)"
                )


def check_whole(cache: Cache) -> None:
    """Refuse a cache that was given to a call which failed in its layers, and let its `in_call` say so of this call.

    Raises:
        Unsupported: There was such a call.
    """
    if torch.compiler.is_compiling():
        return
    if getattr(cache, "in_call", False):
        mend = "pass a new one" if isinstance(cache, DynamicCache) else "reset the cache"
        raise Unsupported(f"an earlier call was cut short, and layers of the cache may hold its tokens: {mend}")
    cache.in_call = False


def has_window(layer: Any) -> bool:
    """Return whether a cache layer keeps the keys of a window of the model's own."""
    return isinstance(layer, CacheLayerMixin) and not isinstance(layer, PlanLayer)


def has_state(layer: Any) -> bool:
    """Return whether a cache layer keeps a state of a constant size."""
    return isinstance(layer, LinearAttentionCacheLayerMixin)


def give_state(source: Any, target: Any) -> None:
    """Give a layer the state of another one."""
    for name in (*vars(LinearAttentionLayer()), "device", "dtype"):
        setattr(target, name, getattr(source, name))


def kv_bytes(layer: Any) -> int:
    """Return the bytes that a layer holds of keys and values."""
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    return 0 if keys is None or values is None else int(keys.nbytes + values.nbytes)


def state_bytes(layer: Any) -> int:
    """Return the bytes that a layer holds of states."""
    if not has_state(layer):
        return 0
    held = (*layer.conv_states.values(), *layer.recurrent_states.values())
    return sum(int(state.nbytes) for state in held if state is not None)


def check_crop(index: int, layer: Any, columns: int, width: int) -> None:
    """Refuse to take back `columns` tokens where a layer no longer holds what it held before them.

    Args:
        index: The layer's index, for errors.
        layer: A cache layer; of one with rules only its state is checked.
        columns: Tokens, padding counted.
        width: Columns that the cache holds.

    Raises:
        Unsupported: Its past is gone.
    """
    if has_window(layer):
        seen, window = layer.get_seq_length(), layer.sliding_window
        if seen >= window:
            needed = min(window - 1, seen - columns)
            if not layer.record_past or layer.keys.shape[-2] - columns < needed:
                raise Unsupported(
                    f"cannot crop {columns} tokens: layer {index} with a sliding window of {window} has dropped older "
                    "keys; call activate_past_recording() before those tokens, as assisted generation does"
                )
    elif has_state(layer) and columns:
        if any(layer.is_recurrent_states_initialized.values()):
            raise Unsupported(
                f"cannot crop: layer {index} keeps a state, which holds all tokens at once; reset the cache and pass "
                "the text that is to stay"
            )
        for i, state in layer.conv_states.items():
            if state is None:
                continue
            held = state.shape[-1]
            if not layer.record_past or (held - columns < layer.conv_kernel_size[i] and held < width):
                raise Unsupported(
                    f"cannot crop {columns} tokens: layer {index} is a convolution that holds its last {held}; call "
                    "activate_past_recording() after the prefill, as assisted generation does"
                )


def crop(layer: Any, columns: int) -> None:
    """Remove the last `columns` tokens, and the past that a layer kept only for such a removal."""
    if has_state(layer) and not (layer.record_past and any(layer.is_conv_states_initialized.values())):
        return
    layer.crop(-columns)


def renewed(old: Any, new: Any) -> Any:
    """Return an empty layer `new` in the place of `old`, which records its past where `old` did."""
    if getattr(old, "record_past", False):
        new.activate_past_recording()
    return new
