"""Check that a forward call continues the text that its cache holds.

A call that does not continue it still gives a result, but a wrong one: part of the text is fed twice, tokens get the
positions of other tokens, or keys of two rotary embeddings lie side by side. The caller could not tell.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moa.hf.calls import check_call
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo
from moa.runtime.cache import KVCache

PADDED = (
    "padding after a token, or alone in a call, beside a cache: layers that keep a state in place of keys would take "
    "it in; pad before the texts, and pass more than one column where a text has not begun"
)
TOO_WIDE = (
    "a mask of {} columns for {} tokens: layers that keep a state in place of keys take its last columns for those of "
    "the new tokens; pass a column for each token that is cached or new"
)
CONTINUE = "pass the whole text, that is what is cached and at least one new token, or reset the cache"


def check_continuation(decoder: Any, cache: Any, call: Mapping[str, Any], model: ModelInfo) -> None:
    """Refuse a call whose columns, positions or rotary embedding do not follow those of the cache.

    On a GPU the positions of a decode step are not checked, since reading them would wait for the device; `generate`
    checks lengths before its first step.

    Args:
        decoder: The model that is called.
        cache: A `KVCache` or `DynamicCache`.
        call: The arguments of the call, by name.
        model: The model's shape.

    Raises:
        Unsupported: The columns, positions or rotary embedding do not follow; or, in a model with layers that keep a
            state in place of keys, padding follows a token.
    """
    if isinstance(cache, KVCache) and call.get("use_cache") is False:
        raise Unsupported("use_cache=False beside a moa.KVCache, which would be written all the same: leave out one")
    given = call.get("input_ids")
    tokens = call.get("inputs_embeds") if given is None else given
    if tokens is None or torch.compiler.is_compiling():
        return
    new, may_sync = tokens.shape[1], tokens.device.type == "cpu" or tokens.shape[1] > 1
    cached = int(cache.get_seq_length()) if may_sync or not isinstance(cache, KVCache) else cache.columns
    positions = call.get("position_ids")
    if positions is not None and (positions.ndim != 2 or positions.shape[1] != new):
        positions = None  # they have several axes (images), or a shape that the model refuses
    if model.keyless:
        if cached:
            check_call(decoder, new, call.get("position_ids"))
        _check_padding(call.get("attention_mask"), cached, new, may_sync)
    if may_sync and positions is not None:
        _check_positions(cache, positions, call.get("attention_mask"), cached)
    limit = longrope_limit(decoder.config)
    if isinstance(cache, KVCache):
        if limit is not None:
            _check_rotary(cache, limit, cached, new, positions, may_sync)
        cache.transcript.append(given, tokens, cached if may_sync else None)


def _check_positions(cache: Any, positions: Tensor, given: Any, cached: int) -> None:
    """Refuse a position below the number of tokens before it, or above the number of columns before it."""
    new = positions.shape[1]
    columns = torch.arange(cached, cached + new, device=positions.device)
    if (positions == columns).all():
        return  # nothing padded, the usual case
    mask = _of_full_layers(given)
    if mask is not None:
        if mask.ndim != 2 or mask.shape[1] < cached + new:
            return  # refused where masks are made
        past, real = mask[:, :cached].sum(1), mask[:, cached : cached + new].bool()
    else:
        lengths = cache.lengths if isinstance(cache, KVCache) else None
        past, real = positions.new_tensor([cached]) if lengths is None else lengths, torch.ones_like(positions).bool()
    if len({len(past), len(real), len(positions)} - {1}) > 1:
        return  # batches differ, which the cache refuses
    wrong = real & ((positions < past[:, None] + real.cumsum(1) - 1) | (positions > columns))
    if wrong.any():
        row, column = wrong.nonzero()[0].tolist()
        found = int(positions.expand(len(wrong), -1)[row, column])
        raise Unsupported(
            f"the cache holds {cached} tokens, and the one in column {cached + column} is given position {found}: "
            f"{CONTINUE}"
        )


def _check_padding(given: Any, cached: int, new: int, may_sync: bool) -> None:
    """Refuse masks with padding anywhere but before a text, which layers with states would compute wrongly.

    Their states decay at a masked token among several, and take in a masked token that comes alone. All columns are
    checked, not only those of new tokens, since a mask may hide a token that an earlier call took in.
    """
    mask = _of_full_layers(given)
    if mask is None or mask.ndim != 2 or mask.shape[1] < cached + new:
        return  # refused where masks are made
    if new > 1 and mask is given and mask.shape[1] > cached + new:
        raise Unsupported(TOO_WIDE.format(mask.shape[1], cached + new))
    real = mask[:, : cached + new].bool()
    before = (real[:, 1:] >= real[:, :-1]).all()
    if new == 1:
        before = before & real[:, -1].all()
    if not may_sync:
        torch._assert_async(before, PADDED)
    elif not before:
        raise Unsupported(PADDED)


def _of_full_layers(mask: Any) -> Tensor | None:
    """Return the mask, or of masks that were made already, one for each kind of layer, that of layers with rules."""
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention")
    return mask if isinstance(mask, Tensor) else None


def longrope_limit(config: Any) -> int | None:
    """Return the number of tokens beyond which a model rotates all keys differently; None if it never does."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [kind for kind in rope.values() if isinstance(kind, dict)]
    limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return int(limits[0]) if limits else None


def _check_rotary(cache: KVCache, limit: int, cached: int, new: int, positions: Tensor | None, may_sync: bool) -> None:
    """Refuse a call that crosses the limit beyond which the model rotates all keys differently."""
    beyond = cached + new > limit
    if beyond and positions is not None and (may_sync or not cache.beyond_limit):
        beyond = int(positions.max()) >= limit  # padding has columns, but no positions
    if not cached or cache.beyond_limit is None:  # None: a benchmark filled the cache without a call
        cache.beyond_limit = beyond
    elif beyond != cache.beyond_limit:
        raise Unsupported(
            f"the model rotates keys of texts over {limit} tokens in another way: {cached} cached and {new} new tokens "
            "cross that limit; reset the cache and pass the whole text in one call"
        )
