"""Split a text into forward calls that a model computes right, and refuse others.

Some models of transformers compute something else, without an error, when a call continues the text of a cache.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moa.hf.logits import decoder_below
from moa.plans.errors import Unsupported


def parts(model: Any, ids: Tensor, cached: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the tokens of one call after another, and the arguments that say their positions.

    Args:
        model: A transformers causal language model.
        ids: Tokens [batch, new], nothing padded.
        cached: Tokens that its cache holds.
    """
    decoder = decoder_below(model)
    at = torch.arange(cached, cached + ids.shape[1], device=ids.device)[None]
    width = 1 if cached and restarts(decoder) else ids.shape[1]
    for part, where in zip(ids.split(width, 1), at.split(width, 1), strict=True):
        yield part, {} if counts(type(decoder)) else {"position_ids": where}


def check_call(decoder: Any, new: int, positions: Tensor | None) -> None:
    """Refuse a call that continues the text of a cache in a way that the model computes wrong.

    Args:
        decoder: The model that is called.
        new: Number of new columns.
        positions: The call's position_ids.

    Raises:
        Unsupported: The model computes it wrong, or needs `positions`.
    """
    name = type(decoder).__name__
    if positions is None and not counts(type(decoder)):
        raise Unsupported(f"{name} does not ask a cache how many tokens it holds: pass position_ids")
    if new > 1 and restarts(decoder):
        raise Unsupported(
            f"{new} tokens after those that the cache holds: the scan of {name} restarts in each call of several "
            "tokens; pass one token at a time, or reset the cache and pass the whole text"
        )


def counts(kind: type) -> bool:
    """Return whether a kind of decoder finds the positions of new tokens by itself, or needs none."""
    forward = inspect.unwrap(kind.forward)  # type: ignore[attr-defined]
    return "get_seq_length" in forward.__code__.co_names or "position_ids" not in inspect.signature(forward).parameters


def restarts(decoder: Any) -> bool:
    """Return whether some layer forgets its state in a call of several tokens: a scan that takes no state."""
    return any("mamba_selective_scan" in _names(type(module)) for module in decoder.modules())


def _names(kind: type) -> tuple[str, ...]:
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)  # type: ignore[attr-defined]
    return code.co_names if code else ()
