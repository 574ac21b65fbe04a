"""Compare answers. A token may differ where two were equally likely; what follows it is not compared."""

from collections.abc import Sequence
from typing import Any

from serving_parts.sizes import TOLERANCE

Answer = dict[str, Any]
"""Greedy `tokens`, the `logprobs` of each, and the `gaps` between it and the next best."""


def compared(found: Sequence[Any], wanted: Sequence[Answer]) -> dict[str, Any]:
    """Return the largest difference of logprobs, how many tokens were compared, and how many were other ones."""
    largest, count, ties, wrong = 0.0, 0, 0, 0
    for output, answer in zip(found, wanted, strict=True):
        if len(output.token_ids) != len(answer["tokens"]):
            wrong += 1
            continue
        for i, token in enumerate(output.token_ids):
            if token != answer["tokens"][i]:  # what follows answers another text
                tie = answer["gaps"][i] < TOLERANCE
                ties, wrong = ties + tie, wrong + (not tie)
                break
            count += 1
            largest = max(largest, abs(output.logprobs[i][token].logprob - answer["logprobs"][i]))
    return {"difference": largest, "tokens": count, "ties": ties, "wrong": wrong}


def same(some: list[dict[str, float]], others: Any) -> bool:
    """Return whether two answers are the same, up to where two tokens were equally likely.

    Args:
        some: Of each token its logprob, then those of the likeliest.
        others: The other answer, of any length, or an error that came instead.
    """
    if not isinstance(others, list) or len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        token = next(iter(one))
        if token != next(iter(other)):
            likeliest = sorted(other.values())[-2:]
            return likeliest[1] - likeliest[0] < TOLERANCE
        if abs(one[token] - other[token]) > TOLERANCE:
            return False
    return True
