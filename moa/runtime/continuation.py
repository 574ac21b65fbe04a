"""Check that a forward call continues the text that its cache holds.

A call that does not continue it still gives a result, but a wrong one: part of the text is fed twice, tokens get the
positions of other tokens, or keys of two rotary embeddings lie side by side. The caller could not tell.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moa.hf.calls import check_call
from moa.hf.masks import check_2d
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.runtime import stock
from moa.runtime.cache import KVCache

PADDED = (
    "padding after a token, or alone in a call, beside a cache: layers that keep a state would take "
    "it in; pad before the texts, and pass more than one column where a text has not begun"
)
TOO_WIDE = (
    "a mask of {} columns for {} tokens: layers that keep a state take its last columns for those of "
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
        Unsupported: The batch, columns, positions or rotary embedding do not follow, or the mask is no mask of padding;
            or, in a model with layers that keep a state, padding follows a token.
    """
    if isinstance(cache, KVCache) and call.get("use_cache") is False:
        raise Unsupported("use_cache=False beside a moa.KVCache, which would be written all the same: leave out one")
    given, tokens = call.get("input_ids"), _tokens(call)
    if tokens is None or torch.compiler.is_compiling():
        return
    _check_batch(cache, len(tokens), call.get("attention_mask"))
    new, may_sync = tokens.shape[1], _may_sync(tokens)
    cached = _cached(cache, may_sync)
    positions = call.get("position_ids")
    if positions is not None and (positions.ndim != 2 or positions.shape[1] != new):
        positions = None  # they have several axes (images), or a shape that the model refuses
    if model.stateful_layers:
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


def columns_after(call: Mapping[str, Any], cache: Any) -> int:
    """Return how many columns there are after a call, or in a compiled graph with a fixed cache, how many there may be.

    Args:
        call: The arguments of the call, by name.
        cache: A cache, or None.
    """
    tokens = _tokens(call)
    new = 0 if tokens is None else int(tokens.shape[1])
    if tokens is None or cache is None:
        return new
    if torch.compiler.is_compiling():
        return max(new, getattr(cache, "max_length", None) or 0)
    return _cached(cache, _may_sync(tokens)) + new


def reads_last_alone(call: Mapping[str, Any], cache: Any, plan: Plan) -> bool:
    """Return whether layers that share keys may compute the last token of a call alone, for the logits asked of it.

    Nothing may be padded, since our masks have no axis of queries to cut. Elsewhere keys are not stored apart from
    attention: in a cache of fixed length, and by rules that move keys or read less than they keep.

    Args:
        call: The arguments of the call, by name.
        cache: A cache, or None.
        plan: The plan.
    """
    keep, mask, tokens = call.get("logits_to_keep"), call.get("attention_mask"), _tokens(call)
    if torch.compiler.is_compiling() or not isinstance(keep, int) or keep != 1 or tokens is None:
        return False
    if tokens.shape[1] == 1 or getattr(cache, "max_length", None) is not None:
        return False
    if any(rule.moves_keys() or rule.read < 1 for rules in plan.groups.values() for rule in rules):
        return False
    return mask is None or (isinstance(mask, Tensor) and mask.ndim == 2 and bool(mask.all()))


def _tokens(call: Mapping[str, Any]) -> Tensor | None:
    """Return the token ids of a call, or its embeddings."""
    given = call.get("input_ids")
    return call.get("inputs_embeds") if given is None else given


def _may_sync(tokens: Tensor) -> bool:
    """Return whether the host may wait for values of the device."""
    return tokens.device.type == "cpu" or tokens.shape[1] > 1


def _cached(cache: Any, may_sync: bool) -> int:
    """Return the number of columns in a cache."""
    return int(cache.get_seq_length()) if may_sync or not isinstance(cache, KVCache) else cache.columns


def _check_batch(cache: Any, batch: int, given: Any) -> None:
    """Refuse another batch than the cache holds, and masks that are not of it, before any layer stores its tokens."""
    held = stock.batch_size(cache)
    if held not in (None, batch):
        raise Unsupported(f"the cache holds a batch of {held}, the model got {batch}")
    mask = _of_full_layers(given)
    if mask is None:
        return
    check_2d(mask)
    if len(mask) != batch:
        raise Unsupported(f"attention_mask must have {batch} rows, one for each text, found {len(mask)}")


def _check_positions(cache: Any, positions: Tensor, given: Any, cached: int) -> None:
    """Refuse a position below the number of tokens before it, or above the number of columns before it."""
    new = positions.shape[1]
    columns = torch.arange(cached, cached + new, device=positions.device)
    if (positions == columns).all():
        return  # nothing padded, the usual case
    mask = _of_full_layers(given)
    if mask is not None:
        if mask.shape[1] < cached + new:
            return  # refused where masks are made
        past, real = mask[:, :cached].sum(1), mask[:, cached : cached + new].bool()
    else:
        lengths = cache.lengths if isinstance(cache, KVCache) else None
        past, real = positions.new_tensor([cached]) if lengths is None else lengths, torch.ones_like(positions).bool()
    if len({len(past), len(real), len(positions)} - {1}) > 1:
        return  # other rows than texts, which the model refuses
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
    if mask is None or mask.shape[1] < cached + new:
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
