"""Tell what transformers' mask functions show. They are closures, composed of each other and called pair by pair."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.masking_utils import causal_mask_function


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


def is_sliding(function: Callable[..., Any]) -> bool:
    """Return whether a mask function has a sliding window as one of the parts that must all show a pair."""
    if function is causal_mask_function or not _made_by("and_masks", function):  # the first alone in a compiled graph
        return False
    parts = inspect.getclosurevars(function).nonlocals.get("mask_functions", ())
    return any(_made_by("sliding_window_overlay", part) for part in parts)


def _adds_nothing(function: Callable[..., Any]) -> bool:
    if not _made_by("blockwise_overlay", function):
        return False
    blocks = inspect.getclosurevars(function).nonlocals.get("block_sequence_ids")
    return isinstance(blocks, Tensor) and bool((blocks < 0).all())  # -1: the token is in no picture


def _made_by(maker: str, function: Callable[..., Any]) -> bool:
    made = getattr(function, "__qualname__", "").startswith(f"{maker}.<locals>.")
    return made and getattr(function, "__module__", None) == causal_mask_function.__module__
