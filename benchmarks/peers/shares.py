"""Say how much a peer keeps in the bytes of a plan, in the words of kvpress: a compression ratio."""

from typing import Any

from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan

EDGE = 1e-6
"""Part of a token by which ratios avoid rounding away a whole one."""


def token_bytes(info: ModelInfo, dtype: Any) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    return info.dense_kv_bytes(1, dtype=dtype)


def tokens(plan: Plan, n: int, dtype: Any) -> int:
    """Return how many of `n` tokens every KV head of every layer can keep in what the plan's cache allocates for them.

    Raises:
        MoaError: That is none of them, or all.
    """
    found = plan.kv_bytes(n, dtype=dtype) // token_bytes(plan.model, dtype)
    if not 0 < found < n:
        raise MoaError(
            f"the plan's cache must have room for 1 to {n - 1} of {n} tokens in every KV head, found {found}; "
            "choose greater lengths, or other densities"
        )
    return found


def ratio(method: str, kept: int, n: int) -> float:
    """Return the compression ratio by which a press keeps `kept` of `n` tokens in every KV head, on average.

    Presses round what they keep down to whole tokens of a head; KVzip rounds what it drops down to single entries.
    """
    return 1 - (kept - EDGE if method == "KVzip" else kept + EDGE) / n
