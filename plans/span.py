"""Define which keys each query sees. Every mask, kernel, cache, cost and report derives from this definition.

For query block `b` (positions 64b .. 64b+63) of a group with rule (sink, alpha, beta), with n = 64b+1 the length at the
block's first row and S = sink/64:

    window(n) = max(alpha + beta*n - sink, 64)
    first(b)  = max(S, floor((n - window(n)) / 64))

and a row of block b sees blocks [0, S) and [first(b), b], causally (everything when first(b) <= S). beta is k/256, so
all arithmetic is integer. Since beta <= 1, `first` never falls and rises by at most one per block: once a key is
dropped, it is never needed again. The form is MoA's elastic rule (arXiv 2406.14909, section 4), applied per query
position instead of per prompt.

The function `linear` computes this window. A pattern whose window grows in another way supplies its own function, which
must never fall, and must grow by at most one token per token wherever it is shorter than the text.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

BLOCK = 64
"""Positions in a block: the grain of rules, kernels, cache and profile."""

BETA_STEPS = 256
"""beta is a multiple of 1/256."""

LONGEST = 2**24
"""The longest text that commands and budgets take, tokens: tables of longer ones fill the memory."""

FIRST_KEYS, KEYDIFF = "first", "keydiff"
HOLDS: tuple[str, ...] = (FIRST_KEYS, KEYDIFF)
"""All that sinks may hold, by name; `moa.kernels.sink_contents` says how the keys of each are chosen."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
IntLike = int | npt.NDArray[np.integer]


Window = Callable[[Ints, Ints, Ints, Ints], Ints]
"""Function from a rule's three integers (the sink first) and the length to the window's size, in 1/256 of a token."""


def linear(sink: Ints, alpha: Ints, beta256: Ints, n: Ints) -> Ints:
    """Return the window of the rule (sink, alpha, beta) at length `n`, in 1/256 of a token; all broadcast."""
    return BETA_STEPS * (alpha - sink) + beta256 * n


def first_block(sink: IntLike, alpha: IntLike, beta256: IntLike, block: IntLike, window: Window = linear) -> Ints:
    """Return the first block kept after the sink, for queries of `block`.

    Args:
        sink: Sink tokens, a multiple of 64.
        alpha: Constant part of the span, tokens.
        beta256: Growth of the span per token of length, in 1/256ths, 0 to 256.
        block: Query block index, 0 and up. All four broadcast together.
        window: Function that gives the window its three numbers describe; the functions below take it too.

    Returns:
        int64, at least `sink // 64`; the rows of `block` see everything exactly when it equals `sink // 64`.
    """
    sink_, alpha_, beta_, block_ = (np.asarray(x, np.int64) for x in (sink, alpha, beta256, block))
    n = BLOCK * block_ + 1
    width = np.maximum(window(sink_, alpha_, beta_, n), BETA_STEPS * BLOCK)  # in 1/256 token
    return np.maximum(sink_ // BLOCK, (BETA_STEPS * n - width) // (BETA_STEPS * BLOCK))


def span(sink: IntLike, alpha: IntLike, beta256: IntLike, length: IntLike, window: Window = linear) -> Ints:
    """Return how many keys the query at `length` sees (that query included), tokens; broadcasts."""
    n = np.asarray(length, np.int64)
    return keys_seen(first_block(sink, alpha, beta256, np.maximum(n - 1, 0) // BLOCK, window), sink, n)


def keys_seen(first: IntLike, sink: IntLike, length: IntLike) -> Ints:
    """Return how many keys the query at `length` sees whose block keeps blocks from `first` on; broadcasts."""
    n, s = np.asarray(length, np.int64), np.asarray(sink, np.int64)
    return np.where(first <= s // BLOCK, n, s + n - BLOCK * first)


def live_blocks(sink: IntLike, alpha: IntLike, beta256: IntLike, length: IntLike, window: Window = linear) -> Ints:
    """Return how many blocks of keys the query at `length` needs, the sink's included; never falls; broadcasts."""
    n, s = np.asarray(length, np.int64), np.asarray(sink, np.int64) // BLOCK
    block = np.maximum(n - 1, 0) // BLOCK
    first = first_block(sink, alpha, beta256, block, window)
    live = np.where(first <= s, block + 1, s + block - first + 1)
    return np.where(n > 0, live, 0)


def cache_blocks(sink: IntLike, alpha: IntLike, beta256: IntLike, length: IntLike, window: Window = linear) -> Ints:
    """Return how many blocks the cache holds at `length`: the live ones and a spare, at most the text's; broadcasts.

    The spare lets dropped blocks be evicted late, so that a write or a rollback of up to 64 tokens is always legal.
    """
    whole = -(-np.asarray(length, np.int64) // BLOCK)
    return np.minimum(live_blocks(sink, alpha, beta256, length, window) + 1, whole)


class Reach:
    """The spans of any number of rules, whatever their window functions.

    Results have the shape of the rules followed by that of the argument. Immutable.

    Attributes:
        sink: Sink tokens, int64 [*rules].
    """

    def __init__(self, numbers: npt.ArrayLike, windows: Sequence[Window]) -> None:
        """Take the numbers [rules, 3] of the rules, and the window function [rules] that reads each."""
        table = np.array(numbers, np.int64).reshape(-1, 3)
        which = np.array([list(dict.fromkeys(windows)).index(window) for window in windows], np.int64)
        for array in (table, which):
            array.flags.writeable = False  # views of them are handed out
        self._numbers: tuple[Ints, Ints, Ints] = (table[:, 0], table[:, 1], table[:, 2])
        self._which, self._windows = which, tuple(dict.fromkeys(windows))

    @property
    def sink(self) -> Ints:
        """Sink tokens, int64 [*rules]."""
        return self._numbers[0]

    def __len__(self) -> int:
        return len(self.sink)

    def __getitem__(self, index: int | slice | Ints) -> "Reach":
        """Return some of the rules, selected by a numpy index."""
        return self._changed(lambda array: np.asarray(array[index]))

    def reshape(self, *shape: int) -> "Reach":
        """Return the same rules in another shape."""
        return self._changed(lambda array: array.reshape(shape))

    def first(self, block: IntLike) -> Ints:
        """Return the first block kept after the sink, for queries of `block`."""
        return self._over(first_block, block)

    def span(self, length: IntLike) -> Ints:
        """Return how many keys the query at `length` sees."""
        return self._over(span, length)

    def live_blocks(self, length: IntLike) -> Ints:
        """Return how many blocks of keys the query at `length` needs."""
        return self._over(live_blocks, length)

    def cache_blocks(self, length: IntLike) -> Ints:
        """Return how many blocks the cache holds at `length`."""
        return self._over(cache_blocks, length)

    def _over(self, what: Callable[..., Ints], at: IntLike) -> Ints:
        end = (1,) * np.ndim(at)
        return what(*(x.reshape(x.shape + end) for x in self._numbers), at, self._window)

    def _window(self, sink: Ints, alpha: Ints, beta256: Ints, n: Ints) -> Ints:
        found, *rest = (window(sink, alpha, beta256, n) for window in self._windows)
        which = self._which.reshape(sink.shape) if rest else self._which
        for i, other in enumerate(rest, 1):
            found = np.where(which == i, other, found)
        return found

    def _changed(self, change: Callable[[Ints], Ints]) -> "Reach":
        new = object.__new__(Reach)
        sink, alpha, beta256 = map(change, self._numbers)
        new._numbers, new._which, new._windows = (sink, alpha, beta256), change(self._which), self._windows
        return new
