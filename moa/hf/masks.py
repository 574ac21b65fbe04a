"""Tell what transformers' mask functions show. They are closures, composed of each other and called pair by pair."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.masking_utils import causal_mask_function

from moa.plans.config import WINDOWS, is_shorter, window_of
from moa.plans.errors import Unsupported


def is_causal(function: Callable[..., Any]) -> bool:
    """Return whether a mask function is known to show each token itself and all before it, and no others.

    Models for images and text add that a picture's tokens see each other, even for a text without a picture.
    """
    if function is causal_mask_function:
        return True
    if not _made_by("or_masks", function):
        return False
    parts = inspect.getclosurevars(function).nonlocals.get("mask_functions", ())
    return causal_mask_function in parts and all(part is causal_mask_function or _adds_nothing(part) for part in parts)


def is_windowed(function: Callable[..., Any]) -> bool:
    """Return whether a mask function has a sliding window or a chunk as one of the parts that must all show a pair."""
    if function is causal_mask_function or not _made_by("and_masks", function):  # the first alone in a compiled graph
        return False
    parts = inspect.getclosurevars(function).nonlocals.get("mask_functions", ())
    return any(_made_by(maker, part) for maker in ("sliding_window_overlay", "chunked_overlay") for part in parts)


def check_2d(mask: Tensor) -> None:
    """Refuse a mask that says of each pair of tokens what is seen, and not of each token whether it is padding.

    Raises:
        Unsupported: It does.
    """
    if mask.ndim != 2:
        raise Unsupported(f"{mask.ndim}-D attention masks under a plan: pass a 2-D mask that marks padding")


def is_own(function: Callable[..., Any], config: Any, size: int | None) -> bool:
    """Return whether a mask is that of layers with a window of the model's own, which take no rules.

    A window no shorter than the longest text is none.

    Args:
        function: The mask function.
        config: The config of the model that asks for the mask.
        size: The window that transformers passes beside the function, where it does.
    """
    if size is not None:
        return is_shorter(config, size)
    return is_windowed(function) and any(window_of(config, kind) is not None for kind in WINDOWS)


def _adds_nothing(function: Callable[..., Any]) -> bool:
    if not _made_by("blockwise_overlay", function):
        return False
    blocks = inspect.getclosurevars(function).nonlocals.get("block_sequence_ids")
    return isinstance(blocks, Tensor) and bool((blocks < 0).all())  # -1: the token is in no picture


def _made_by(maker: str, function: Callable[..., Any]) -> bool:
    made = getattr(function, "__qualname__", "").startswith(f"{maker}.<locals>.")
    return made and getattr(function, "__module__", None) == causal_mask_function.__module__
