"""Say which pages each query sees: the one thing that an attention kernel must be told to follow a rule.

All queries of a block of 64 see the same pages besides their own block, and keys are stored after RoPE. So each query
block becomes a sequence of its own, whose block table names only the pages that it sees, and an ordinary causal kernel
computes the rule exactly. Query blocks that see everything stay together. Nothing here needs vLLM or torch.
"""

from typing import NamedTuple

import numpy as np

from moa.plans.span import BLOCK, Ints, Reach


class Sequences(NamedTuple):
    """A batch whose sequences see all their keys, causally.

    Attributes:
        request: The request that each is part of, rising, int64 [sequences].
        queries: Its new tokens, which follow those of the one before, int64 [sequences].
        keys: The keys it sees, its new tokens included, int64 [sequences].
        blocks: Indices in the request's block table, 0 where it sees fewer, int64 [sequences, most].
    """

    request: Ints
    queries: Ints
    keys: Ints
    blocks: Ints


def sequences(new: Ints, length: Ints, rule: Reach) -> Sequences:
    """Return a batch under one rule.

    Args:
        new: New tokens of each request; those without any have no sequence.
        length: Its length, new tokens included.
        rule: The reach of one rule, of shape [].
    """
    here = np.flatnonzero(new)
    begin = length[here] - new[here]
    lowest, highest = begin // BLOCK, (length[here] - 1) // BLOCK
    counts = highest - lowest + 1
    of = np.repeat(np.arange(len(here)), counts)  # of every query block, its request
    block = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + lowest[of]
    first, sink = rule.first(block), int(rule.sink) // BLOCK
    whole = first <= sink
    end = np.minimum(length[here][of], BLOCK * (block + 1))
    queries = end - np.maximum(begin[of], BLOCK * block)
    joins = whole & (np.diff(of, prepend=-1) == 0)  # `first` never falls, so the block before sees everything too
    starts = np.flatnonzero(~joins)
    last = np.append(starts, len(of))[1:] - 1
    whole, end, first = whole[last], end[last], first[last]
    keys = np.where(whole, end, BLOCK * (sink - first) + end)
    index = np.arange(int((-(-keys // BLOCK)).max(initial=0)))
    skipped = np.where(whole, 0, first - sink)
    blocks = np.where(index < sink, index, index + skipped[:, None])
    blocks = np.where(BLOCK * index < keys[:, None], blocks, 0)
    return Sequences(here[of[last]], np.add.reduceat(queries, starts) if len(starts) else queries, keys, blocks)
