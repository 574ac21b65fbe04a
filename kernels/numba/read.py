"""Compile the step of rows that read only some pages: write the new keys, choose pages by their summaries, attend.

First each row of a slab gets the list of its pages of four keys, chosen by the summaries or all that it sees. Then the
pages of all lists are dealt out to threads in equal runs, and a thread attends to sixteen of them at a time, as
`moa.kernels.numba.decode` does to a block.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import prange

from moa.kernels.numba import choose, decode, lists, online, pages, summaries, vectors
from moa.kernels.numba.decode import compiled
from moa.kernels.numba.lists import budget, lister
from moa.kernels.numba.online import NOTHING, joiner, parts_of, softener, write
from moa.kernels.numba.pages import AHEAD, LANES, dots, mix
from moa.kernels.numba.summaries import fill
from moa.kernels.numba.vectors import SIZE
from moa.plans import reading
from moa.plans.reading import FINE, INSIDE
from moa.plans.span import BLOCK

_COMPILED = choose, decode, lists, online, pages, reading, summaries, vectors
CODE = sha256(b"".join(Path(str(x.__file__)).read_bytes() for x in _COMPILED)).hexdigest()[:8]
"""Hash of all else that is compiled into the step, as in `moa.kernels.numba.decode`."""


@cache
def kernel(heads: int, size: int, kind: str, parallel: bool, capped: bool = False, sunk: bool = False) -> Any:
    """Return the compiled step; arguments as for `moa.kernels.numba.decode.kernel`.

    Returns:
        (q, out, k, v, keys, values, summaries, order, base, capacity, first, sink, share, given, cu_seqlens, past,
        scale, cap, sink_logits, threads) -> whether it attended. If every sequence has new tokens and every row reads
        all that it sees, it only writes keys and summaries.
    """
    wide = np.float64 if kind == "float64" else np.float32
    width, bytes_ = SIZE[kind], np.dtype(wide).itemsize
    fill_pages, list_pages = fill(kind), lister(heads, size, kind)
    soften, join = softener(kind, capped), joiner(kind, sunk)

    def read(
        q: Any, out: Any, k: Any, v: Any, keys: Any, values: Any, summaries: Any, order: Any, base: Any, capacity: Any,
        first: Any, sink: Any, share: Any, given: Any, cu_seqlens: Any, past: Any, scale: Any, cap: Any,
        sink_logits: Any, threads: Any,
    ) -> Any:  # fmt: skip
        groups, slabs, tokens, limit = len(sink), len(order), len(k), wide(cap)
        factor = wide(scale / cap) if capped else wide(scale)
        write(k, v, keys, values, base, capacity, sink, cu_seqlens, past)

        # Rows are in the order of the slabs, which threads take in equal runs by what there is to choose among.
        seen = np.empty((tokens * groups, 3), np.int64)
        edges = np.zeros(tokens * groups + 1, np.int64)  # pages that rows before each read
        starts, work = np.zeros(slabs + 1, np.int64), np.zeros(slabs + 1, np.int64)
        longest, chooses, nonempty = 0, False, True
        row = 0
        for i in range(slabs):
            s, g = order[i] // groups, order[i] % groups
            nonempty &= cu_seqlens[s] < cu_seqlens[s + 1]
            work[i + 1] = work[i] + 1
            for w in range(cu_seqlens[s + 1] - cu_seqlens[s]):
                n = past[s] + w + 1
                kept, among, count = budget(share[g], given[g], sink[g], first[g, (n - 1) // BLOCK], n, size)
                seen[row, 0], seen[row, 1], seen[row, 2] = kept, among, count
                edges[row + 1] = edges[row] + -(-kept // FINE) - INSIDE * among + count
                chooses |= count < INSIDE * among
                work[i + 1] += count + (among if count < INSIDE * among else 0)
                longest = max(longest, kept)
                row += 1
            starts[i + 1] = row

        listed = np.zeros(edges[row] + AHEAD, np.int32)
        for t in prange(threads):
            room = (longest // BLOCK + 1) * (BLOCK // FINE) + 2 * LANES
            scores, integers = np.empty((heads + 1, room), wide), np.empty((4, room), np.int32)
            for i in range(slabs):
                if work[i] * threads // work[slabs] != t:
                    continue
                s, g = order[i] // groups, order[i] % groups
                count = cu_seqlens[s + 1] - cu_seqlens[s]
                fill_pages(keys, summaries, base[s, g], capacity[s, g], sink[g] // BLOCK, past[s], count)
                for w in range(count if chooses or not nonempty else 0):
                    edge, mine = first[g, (past[s] + w) // BLOCK], starts[i] + w
                    list_pages(
                        q[(cu_seqlens[s] + w) * groups + g], summaries, base[s, g], capacity[s, g], sink[g], edge,
                        given[g], seen[mine], wide(scale), listed[edges[mine] : edges[mine + 1]], scores, integers,
                    )  # fmt: skip
        if nonempty and not chooses:
            return False

        rows = row
        owner = np.empty(rows, np.int64)
        for i in range(slabs):
            owner[starts[i] : starts[i + 1]] = i
        # Thread t's share of row r is part r + t: both only rise, so no two shares have one number.
        top = np.full((rows + threads, heads), NOTHING, wide)
        total = np.zeros((rows + threads, heads), wide)
        sums = np.zeros((rows + threads, heads, size), wide)
        for t in prange(threads):
            scores = np.empty((heads, BLOCK), wide)
            done, end, r = edges[rows] * t // threads, edges[rows] * (t + 1) // threads, 0
            while done < end:
                while edges[r + 1] <= done:
                    r += 1
                s, g, part = order[owner[r]] // groups, order[owner[r]] % groups, r + t
                mine = q.ctypes.data + ((cu_seqlens[s] + r - starts[owner[r]]) * groups + g) * heads * size * bytes_
                rest = seen[r, 0] % FINE
                full, stop = edges[r + 1] - (rest > 0), min(end, edges[r + 1])  # a page that is not full comes last
                while done < stop:
                    upto = min(stop, done + BLOCK // FINE)
                    count = min(upto, full) - done
                    known = FINE * count
                    here = listed.ctypes.data + 4 * done
                    dots(keys.ctypes.data, here, count, mine, scores.ctypes.data, BLOCK, heads, size, kind)
                    later = listed[full] * FINE * size * width
                    if upto > full:
                        some = scores.ctypes.data + known * bytes_
                        vectors.dots(keys.ctypes.data + later, rest, mine, some, heads, size, kind, BLOCK)
                        known += rest
                    for h in range(heads):
                        soften(scores, h, known, factor, limit, top, total, sums, part, h)
                    mixed = sums.ctypes.data + part * heads * size * bytes_
                    mix(values.ctypes.data, here, count, scores.ctypes.data, mixed, BLOCK, heads, size, kind)
                    if upto > full:
                        some = scores.ctypes.data + FINE * count * bytes_
                        vectors.mix(values.ctypes.data + later, rest, some, mixed, heads, size, kind, BLOCK)
                    done = upto

        for r in range(rows):
            s, g = order[owner[r]] // groups, order[owner[r]] % groups
            begin, end = parts_of(edges, r, threads)
            for h in range(heads):
                logit = sink_logits[g, h] if sunk else wide(0)
                target = out[(cu_seqlens[s] + r - starts[owner[r]]) * groups + g, h]
                join(top, total, sums, r + begin, r + end, h, logit, target)
        return True

    read.__qualname__ = f"read_{heads}_{size}_{kind}_{BLOCK}_{CODE}" + "_parallel" * parallel
    read.__qualname__ += "_capped" * capped + "_sunk" * sunk
    return compiled(read, parallel)
