"""Sort the KV heads of a model into a few KV-cache groups by what their rules keep. Nothing here needs vLLM.

vLLM gives every group of layers a block table of its own, and frees blocks group by group; all groups must have equally
many layers. Here a "layer" is one KV head. A group keeps what any of its heads wants, so heads are sorted by what they
keep and the list is cut into equal parts.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from moa.plans.errors import MoaError
from moa.plans.patterns import Rule, reach
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, IntLike, Ints

Rules = tuple[Rule, ...]

Head = tuple[int, int]
"""A layer, and one of the KV heads that each rank has of it."""

NEAR = 1.05
"""The fewest groups are taken that keep at most so many times what one per head would: each costs the host time."""


class Kept:
    """The blocks that a KV-cache group keeps: all that any of its rules wants.

    Attributes:
        sink: Blocks at the start that are always kept.
    """

    def __init__(self, rules: Rules) -> None:
        self._reach = reach(rules)
        self.sink = int(self._reach.sink.max()) // BLOCK

    def first(self, block: IntLike) -> Ints:
        """Return the first block kept besides the sink, for queries of `block`."""
        first: Ints = self._reach.first(block).min(0)
        return first

    def gap(self, block: IntLike) -> Ints:
        """Return how many blocks after the sink are not kept, for queries of `block`."""
        return np.maximum(self.first(block) - self.sink, 0)

    def most(self, tokens: int, in_flight: int) -> int:
        """Return the most blocks that one request holds at once.

        Args:
            tokens: Longest text, tokens.
            in_flight: Most tokens of a request that are scheduled but not yet computed; their blocks are all there.
        """
        blocks = -(-tokens // BLOCK)
        start = np.arange(blocks)
        end = np.minimum(start + 1 + -(-in_flight // BLOCK), blocks)
        return int((end - self.gap(start)).max())


@functools.cache
def kept(rules: Rules) -> Kept:
    """Return what a group of these rules keeps."""
    return Kept(rules)


class Groups(NamedTuple):
    """Which KV heads share a block table.

    Attributes:
        of: The group of each head.
        rules: Of each group, the distinct rules of its heads, on any rank.
        share: Blocks kept over a text of the longest length, as a share of the dense model's.
        least: The same with one group per head.
    """

    of: dict[Head, int]
    rules: tuple[Rules, ...]
    share: float
    least: float


def on_ranks(plan: Plan, ranks: int) -> dict[Head, Rules]:
    """Return the rules of each rank's KV heads: of head `(layer, i)`, that of the i-th KV head of every rank, by rank.

    Ranks have equally many KV heads, in order; where there are more ranks than heads, neighbours share one.

    Raises:
        MoaError: Neither number is a multiple of the other.
    """
    heads = plan.model.kv_heads
    if heads % ranks and ranks % heads:
        raise MoaError(f"tensor_parallel_size must divide the {heads} KV heads or be a multiple, found {ranks}")
    each, sharing = max(heads // ranks, 1), max(ranks // heads, 1)
    return {
        (layer, i): tuple(plan.rule(layer, rank // sharing * each + i) for rank in range(ranks))
        for layer in plan.groups
        for i in range(each)
    }


def sort(heads: Mapping[Head, Rules], length: int, count: int | None = None) -> Groups:
    """Return the heads in groups.

    Args:
        heads: The rules of each, one per rank.
        length: Longest text, tokens.
        count: Groups; None takes the fewest that keep little more than one group per head would (`NEAR`).

    Raises:
        MoaError: The heads cannot be cut into so many equal groups.
    """
    blocks = np.arange(-(-length // BLOCK))

    def total(rules: Rules) -> int:
        return int((blocks + 1 - kept(rules).gap(blocks)).sum())

    def cut(groups: int) -> tuple[tuple[Rules, ...], int]:
        size = len(order) // groups
        parts = (order[i : i + size] for i in range(0, len(order), size))
        unions = tuple(tuple(dict.fromkeys(rule for head in part for rule in heads[head])) for part in parts)
        return unions, size * sum(map(total, unions))

    sizes = {rules: total(tuple(dict.fromkeys(rules))) for rules in set(heads.values())}
    order = sorted(heads, key=lambda head: (sizes[heads[head]], [(r.pattern, r.numbers) for r in heads[head]], head))
    possible = [groups for groups in range(1, len(order) + 1) if len(order) % groups == 0]
    if count is not None and count not in possible:
        raise MoaError(
            f"moa_groups must divide the {len(order)} KV heads, found {count}: {', '.join(map(str, possible))}"
        )
    least = sum(sizes[rules] for rules in heads.values())
    chosen = count or next(groups for groups in possible if cut(groups)[1] <= NEAR * least)
    rules, found = cut(chosen)
    size, dense = len(order) // chosen, len(order) * int((blocks + 1).sum())
    return Groups({head: i // size for i, head in enumerate(order)}, rules, found / dense, least / dense)
