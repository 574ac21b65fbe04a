"""The rules that the search chooses from, laid out relative to the profiled lengths.

A rule's window is a line in the length, and a line is two points: how many blocks it keeps at a short length and at
the longest. Both points take values in equal ratios, from the smallest window to everything. So the grid holds constant
windows (both equal), windows that grow in proportion, and all between, among them those with negative alpha, which
grow faster than in proportion. The paper's grid (arXiv 2406.14909, section 5.1) has 6 alphas and 9 betas.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moa.plans.rule import PATTERNS, KeyDiffWindow, Rule
from moa.plans.span import BETA_STEPS, BLOCK, Ints, cache_blocks, first_block, span

LEVELS = 20
"""Window sizes per point, before equal ones are merged."""


@dataclass(frozen=True)
class Grid:
    """Rules as arrays, int64 [rules] each; the cheapest at the profiled lengths first."""

    sink: Ints
    alpha: Ints
    beta256: Ints
    pattern: npt.NDArray[np.str_]
    """Their patterns' names, [rules]."""

    def __len__(self) -> int:
        return len(self.sink)

    @property
    def keydiff(self) -> npt.NDArray[np.bool_]:
        """Whose sinks hold other keys than the first: bool [rules]."""
        return np.array([issubclass(PATTERNS[name], KeyDiffWindow) for name in self.pattern])

    def rule(self, index: int) -> Rule:
        """The rule at `index`."""
        beta = int(self.beta256[index]) / BETA_STEPS
        kind = PATTERNS[str(self.pattern[index])]
        return kind(sink=int(self.sink[index]), alpha=int(self.alpha[index]), beta=beta)

    def first(self, length: int) -> Ints:
        """First block kept besides the sink, for every query block of a text of `length`: int64 [rules, blocks]."""
        sink, alpha, beta256 = (x[:, None] for x in self._rule())
        return first_block(sink, alpha, beta256, np.arange(-(-length // BLOCK)))

    def spans(self, length: int) -> Ints:
        """Keys visible at `length`: int64 [rules]."""
        return span(*self._rule(), length)

    def cache_blocks(self, length: int) -> Ints:
        """Blocks that the cache holds at `length`: int64 [rules]."""
        return cache_blocks(*self._rule(), length)

    def _rule(self) -> tuple[Ints, Ints, Ints]:
        return self.sink, self.alpha, self.beta256


def grid(lengths: tuple[int, ...], patterns: Iterable[tuple[str, int]], levels: int = LEVELS) -> Grid:
    """All rules for a profile, each behaving differently from every other somewhere up to the longest length.

    Args:
        lengths: Profiled lengths, tokens.
        patterns: Profiled patterns with their sink sizes, tokens.
        levels: Window sizes per point.
    """
    longest = max(lengths)
    short = min(min(lengths), longest // 4)
    rules = [(name, rule) for name, sink in patterns for rule in _rules(sink, short, longest, levels)]
    numbers = np.array([rule for _, rule in rules], np.int64).T
    candidates = Grid(numbers[0], numbers[1], numbers[2], np.array([name for name, _ in rules]))
    # Of rules that cannot be told apart at the profiled lengths the first stays: of full ones, the one full everywhere.
    firsts = candidates.first(longest)
    dense = firsts[:, -1] == candidates.sink // BLOCK
    firsts[dense] = 0
    kind = np.where(dense, "", candidates.pattern)
    behaviour = np.column_stack([np.unique(kind, return_inverse=True)[1], firsts])  # the first block's is the sink
    _, kept = np.unique(behaviour, axis=0, return_index=True)
    cost = np.sum([candidates.spans(n)[kept] / n for n in sorted(lengths)], axis=0)
    order = np.lexsort((kept, cost))
    chosen = kept[order]
    sink, alpha, beta256 = (x[chosen] for x in candidates._rule())
    return Grid(sink, alpha, beta256, candidates.pattern[chosen])


def _rules(sink: int, short: int, longest: int, levels: int) -> list[tuple[int, int, int]]:
    """(sink, alpha, beta256) of one sink; full attention first, then those in proportion, then the others."""
    near, far = _windows(short, levels), _windows(longest, levels)
    found = [(sink, 0, BETA_STEPS)]
    found += [(sink, 0, round(BETA_STEPS * w / longest)) for w in far]
    for at_short in sorted({*near, *far}):  # wider than the short length: everything is seen there
        for at_longest in far:
            growth = (at_longest - at_short) / (longest - short)
            if 0 <= growth <= 1:
                beta256 = round(BETA_STEPS * growth)
                # Exact at the longest length: the row that decides there is the first of its block.
                row = (longest - 1) // BLOCK * BLOCK + 1
                found.append((sink, sink + at_longest - beta256 * row // BETA_STEPS, beta256))
    return found


def _windows(length: int, levels: int) -> list[int]:
    """Windows besides the sink from 64 tokens to `length`, whole blocks in nearly equal ratios."""
    blocks = max(1, -(-length // BLOCK))
    return [int(w) for w in BLOCK * np.unique(np.rint(np.geomspace(1, blocks, levels)).astype(np.int64))]
