"""Check the lengths that a model can be measured at."""

from typing import Any

from moa.plans.config import layer_windows, longest_text
from moa.plans.errors import MoaError, Unsupported
from moa.plans.model import ModelInfo

SHORTEST = 256
"""Shortest length to measure, in tokens; shorter texts have no cut worth measuring."""


def check_length(model: Any, length: int) -> None:
    """Refuse a length that nothing can be measured at.

    Raises:
        MoaError: The length is too short, or over the model's maximum.
    """
    longest = longest_text(model.config)
    if length < SHORTEST:
        raise MoaError(f"lengths must be at least {SHORTEST} tokens, found {length}")
    if longest is not None and length > longest:
        raise MoaError(f"length {length} is over the model's maximum of {longest} tokens")


def ruled_window(config: Any, model: ModelInfo) -> int | None:
    """Return the smallest window that a config gives to layers with rules; None if it gives none.

    Such a window counts as none, since the config says that no text is longer.
    """
    windows = layer_windows(config, model.layers)
    return min((window for layer in model.ruled_layers if (window := windows[layer]) is not None), default=None)


def check_window(window: int | None, tokens: int) -> None:
    """Refuse a text longer than the `ruled_window`, of which a layer with rules would see more than the model does.

    Raises:
        Unsupported: It is longer.
    """
    if window is not None and tokens > window:
        raise Unsupported(
            f"{tokens} tokens under a plan: a layer with rules has a window of {window} of its own, which counts as "
            f"none since the config says that no text is longer; pass at most {window} tokens"
        )
