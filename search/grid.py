"""Make the grid of rules that the search chooses from, relative to the profiled lengths.

A rule's window is a line in the length, and a line is two points: how many blocks it keeps at a short length and at
the longest. Both points take values in equal ratios, from the smallest window to everything. So the grid holds constant
windows (both equal), windows that grow in proportion, and all between; among them are windows with negative alpha,
which grow faster than in proportion. The paper's grid (arXiv 2406.14909, section 5.1) has 6 alphas and 9 betas.
"""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from moa.plans.patterns import PATTERNS, Rule, Variant, reach
from moa.plans.span import BLOCK, Ints, Reach

LEVELS = 20
"""Window sizes per point, before equal ones are merged."""


class Grid:
    """Rules to choose from, the cheapest at the profiled lengths first.

    Attributes:
        rules: The rules.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)

    def __len__(self) -> int:
        return len(self.rules)

    @cached_property
    def reach(self) -> Reach:
        """The reach of the rules, of shape [rules]."""
        return reach(self.rules)

    @cached_property
    def read256(self) -> Ints:
        """What the rules read, in 1/256 of all bytes: int64 [rules]."""
        return np.array([rule.read256 for rule in self.rules], np.int64)

    @cached_property
    def given(self) -> Ints:
        """The first keys that the rules always read, tokens: int64 [rules]."""
        return np.array([rule.given for rule in self.rules], np.int64)

    @cached_property
    def keeping(self) -> tuple["Grid", Ints]:
        """The rules that are left without `read`, and which of them each rule is: int64 [rules]."""
        whole = [rule.whole for rule in self.rules]
        place = {rule: i for i, rule in enumerate(dict.fromkeys(whole))}
        return Grid(place), np.array([place[rule] for rule in whole], np.int64)

    def first(self, length: int) -> Ints:
        """Return the first block kept after the sink, per query block of a text of `length`: int64 [rules, blocks]."""
        return self.reach.first(np.arange(-(-length // BLOCK)))

    def spans(self, length: int) -> Ints:
        """Return the keys visible at `length`: int64 [rules]."""
        return self.reach.span(length)

    def everything(self, length: int) -> Ints:
        """Return which rules keep all of a text of `length`: int64 [these rules]."""
        return np.flatnonzero(self.spans(length) == length)

    def cache_blocks(self, length: int) -> Ints:
        """Return the blocks that the cache holds at `length`: int64 [rules]."""
        return self.reach.cache_blocks(length)


def grid(lengths: tuple[int, ...], variants: Iterable[Variant], levels: int = LEVELS) -> Grid:
    """Return all rules for a profile; any two of them differ somewhere up to the longest length.

    Args:
        lengths: Profiled lengths, tokens.
        variants: What was profiled: patterns with their sink sizes, tokens.
        levels: Number of window sizes per point.
    """
    longest = max(lengths)
    short = min(min(lengths), longest // 4)
    near, far = _windows(short, levels), _windows(longest, levels)
    kinds = [(PATTERNS[name], sink) for name, sink in variants]
    found = [(kind, numbers) for kind, sink in kinds for numbers in kind.candidates(sink, near, far, short, longest)]
    sees = Reach([numbers for _, numbers in found], [kind.window for kind, _ in found])
    # Of rules that cannot be told apart at the profiled lengths the first stays: of full ones, the one full everywhere.
    firsts = sees.first(np.arange(-(-longest // BLOCK)))
    dense = firsts[:, -1] == sees.sink // BLOCK
    firsts[dense] = 0
    order_of = {kind: i for i, kind in enumerate(dict.fromkeys(kind for kind, _ in kinds), 1)}
    which = np.where(dense, 0, [order_of[kind] for kind, _ in found])
    _, kept = np.unique(np.column_stack([which, firsts]), axis=0, return_index=True)  # the first block's is the sink
    cost = np.sum([sees.span(n)[kept] / n for n in sorted(lengths)], axis=0)
    chosen = [found[i] for i in kept[np.lexsort((kept, cost))]]
    return Grid(kind.of(numbers) for kind, numbers in chosen)


def _windows(length: int, levels: int) -> list[int]:
    """Return windows (the sink not counted) from 64 tokens to `length`, in whole blocks and nearly equal ratios."""
    blocks = max(1, -(-length // BLOCK))
    return [int(w) for w in BLOCK * np.unique(np.rint(np.geomspace(1, blocks, levels)).astype(np.int64))]
