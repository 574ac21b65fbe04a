"""Compile how the pages that a row reads are listed: all that it sees, or those that its summaries choose."""

from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numba.extending import register_jitable

from moa.kernels.numba.choose import best
from moa.kernels.numba.online import OPTIONS
from moa.kernels.numba.pages import AHEAD, score_quads
from moa.kernels.paged.summaries import QUADS
from moa.plans import reading
from moa.plans.reading import COARSE, FINE, INSIDE, choices, fetched, opened
from moa.plans.span import BLOCK

for function in (reading.token_bytes, reading.summary_bytes, choices, fetched, opened):
    register_jitable(function)  # the definitions themselves are compiled

PAGES = BLOCK // FINE
"""Fine pages of a block."""


@njit  # type: ignore[untyped-decorator]
def budget(share: Any, given: Any, sink: Any, edge: Any, length: Any, size: Any) -> tuple[Any, Any, Any]:
    """Return what a row sees and reads: keys seen, coarse pages to choose among, fine pages fetched of those.

    Args:
        share, given, sink: Those of its group.
        edge: The first block besides the sink that it sees.
        length: Tokens up to the row, itself included.
        size: The head size.
    """
    kept = length if edge * BLOCK <= sink else sink + length - BLOCK * edge
    return kept, choices(kept, given), fetched(share, length, kept, given, size)


@cache
def lister(heads: int, size: int, kind: str) -> Any:
    """Return the compiled function that lists a row's pages, for groups of `heads` query heads of `size`.

    Returns:
        (query, summaries, base, capacity, sink, edge, given, seen, scale, pages, scores, integers): writes to `pages`
        the numbers of the store's fine pages that a row reads, one that is not full last; `seen` is its `budget`,
        `scores` [heads + 1, room] and `integers` [4, room] are room to work in.
    """
    quarter = size // 4

    def list_pages(
        query: Any, summaries: Any, base: Any, capacity: Any, sink: Any, edge: Any, given: Any, seen: Any, scale: Any,
        pages: Any, scores: Any, integers: Any,
    ) -> None:  # fmt: skip
        kept, among, count = seen
        places, quads, open_, chosen = integers
        sinks, blocks = sink // BLOCK, -(-kept // BLOCK)
        ring = max(1, capacity // BLOCK - sinks)
        inside = (max(edge, sinks) - sinks) % ring
        for i in range(blocks):  # where the blocks lie that the row sees
            if i < sinks:
                places[i] = base // BLOCK + i
            else:
                places[i] = base // BLOCK + sinks + inside
                inside = 0 if inside + 1 == ring else inside + 1
        first, end, n = given // COARSE, given // COARSE + among, 0
        if count == INSIDE * among:
            end = first = 0  # then all is floor
        for i in range(INSIDE * first):
            pages[n] = PAGES * places[i // PAGES] + i % PAGES
            n += 1
        if 0 < count < INSIDE * among:
            wanted = opened(count, among)
            room = scores.shape[1]
            weights = scores[heads]
            bits = weights.view(np.int64 if kind == "float64" else np.int32)
            asked = np.empty((heads, 2 * size + INSIDE), scores.dtype)  # the query as `score_quads` takes it
            for h in range(heads):
                total = asked.dtype.type(0)
                for c in range(quarter):
                    for lane in range(INSIDE):
                        asked[h, INSIDE * c + lane] = query[h, quarter + c] * scale
                        asked[h, size + INSIDE * c + lane] = query[h, 3 * quarter + c] * scale
                    total += asked[h, INSIDE * c] ** 2 + asked[h, size + INSIDE * c] ** 2
                asked[h, 2 * size :] = np.sqrt(total) / 2
            if wanted < among:
                start = first // INSIDE
                count_quads = (end - 1) // INSIDE + 1 - start
                for i in range(count_quads + AHEAD):
                    quads[i] = QUADS * places[min(start + i, blocks - 1)]
                score_quads(
                    summaries.ctypes.data, quads.ctypes.data, count_quads, asked.ctypes.data, scores.ctypes.data, room,
                    heads, size, kind,
                )  # fmt: skip
                best(scores[:heads], first - INSIDE * start, end - INSIDE * start, wanted, weights, bits, open_)
            else:
                start = 0
                for i in range(among):
                    open_[i] = first + i
            for i in range(wanted):
                place, inside = places[start + open_[i] // INSIDE], open_[i] % INSIDE
                quads[i] = QUADS * place + 1 + inside
                open_[i] = PAGES * place + INSIDE * inside  # its first fine page
            quads[wanted : wanted + AHEAD] = 0
            score_quads(
                summaries.ctypes.data, quads.ctypes.data, wanted, asked.ctypes.data, scores.ctypes.data, room,
                heads, size, kind,
            )  # fmt: skip
            best(scores[:heads], 0, INSIDE * wanted, count, weights, bits, chosen)
            for i in range(count):
                pages[n] = open_[chosen[i] // INSIDE] + chosen[i] % INSIDE
                n += 1
        for i in range(INSIDE * end, -(-kept // FINE)):
            pages[n] = PAGES * places[i // PAGES] + i % PAGES
            n += 1

    return njit(**OPTIONS)(list_pages)
