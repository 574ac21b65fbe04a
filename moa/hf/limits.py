"""Check the lengths that a model can be measured at."""

from typing import Any

from moa.plans.config import longest_text
from moa.plans.errors import MoaError

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
