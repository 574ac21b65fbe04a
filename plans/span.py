"""The one definition of who sees what. Every mask, kernel, cache, cost and report derives from it.

For query block `b` (positions 64b .. 64b+63) of a group with rule (sink, alpha, beta), with n = 64b+1 the length at the
block's first row and S = sink/64:

    window(n) = max(alpha + beta*n - sink, 64)
    first(b)  = max(S, floor((n - window(n)) / 64))

and a row of block b sees blocks [0, S) and [first(b), b], causally (everything when first(b) <= S). beta is k/256, so
all arithmetic is integer. Since beta <= 1, `first` never falls and rises by at most one per block: a key once dropped
is never wanted again. The rule form is MoA's elastic rule (arXiv 2406.14909, section 4), read per query position
instead of per prompt.
"""

import numpy as np
import numpy.typing as npt

BLOCK = 64
"""Positions in a block: the grain of rules, kernels, cache and profile."""

BETA_STEPS = 256
"""beta is a multiple of 1/256."""

LONGEST = 2**24
"""The longest text that commands and budgets take, tokens: tables of longer ones fill the memory."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
IntLike = int | npt.NDArray[np.integer]


def first_block(sink: IntLike, alpha: IntLike, beta256: IntLike, block: IntLike) -> Ints:
    """First block kept besides the sink, for queries of `block`.

    Args:
        sink: Sink tokens, a multiple of 64.
        alpha: Constant part of the span, tokens.
        beta256: Growth of the span per token of length, in 1/256ths, 0 to 256.
        block: Query block index, 0 and up. All four broadcast together.

    Returns:
        int64, at least `sink // 64`; the rows of `block` see everything exactly when it equals `sink // 64`.
    """
    sink_, alpha_, beta_, block_ = (np.asarray(x, np.int64) for x in (sink, alpha, beta256, block))
    n = BLOCK * block_ + 1
    window = np.maximum(BETA_STEPS * (alpha_ - sink_) + beta_ * n, BETA_STEPS * BLOCK)  # in 1/256 token
    return np.maximum(sink_ // BLOCK, (BETA_STEPS * n - window) // (BETA_STEPS * BLOCK))


def span(sink: IntLike, alpha: IntLike, beta256: IntLike, length: IntLike) -> Ints:
    """Keys visible to the query at `length` (that query included), tokens; broadcasts."""
    n, s = np.asarray(length, np.int64), np.asarray(sink, np.int64)
    first = first_block(sink, alpha, beta256, np.maximum(n - 1, 0) // BLOCK)
    return np.where(first <= s // BLOCK, n, s + n - BLOCK * first)


def live_blocks(sink: IntLike, alpha: IntLike, beta256: IntLike, length: IntLike) -> Ints:
    """Blocks of keys that the query at `length` needs, the sink's included; never falls with length; broadcasts."""
    n, s = np.asarray(length, np.int64), np.asarray(sink, np.int64) // BLOCK
    block = np.maximum(n - 1, 0) // BLOCK
    first = first_block(sink, alpha, beta256, block)
    live = np.where(first <= s, block + 1, s + block - first + 1)
    return np.where(n > 0, live, 0)


def cache_blocks(sink: IntLike, alpha: IntLike, beta256: IntLike, length: IntLike) -> Ints:
    """Blocks the cache holds at `length`: the live ones and one spare, never more than the whole text's; broadcasts.

    The spare lets dropped blocks be evicted late, so that a write or a rollback of up to 64 tokens is always legal.
    """
    whole = -(-np.asarray(length, np.int64) // BLOCK)
    return np.minimum(live_blocks(sink, alpha, beta256, length) + 1, whole)
