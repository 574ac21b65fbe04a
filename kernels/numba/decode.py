"""Compile the loops of a decode step: write the new keys, then attend from the slabs where they lie.

The blocks that hold text are dealt out to threads in equal runs, slab after slab. A thread walks over its run block by
block and keeps, for each row of the slab's sequence, the running maximum, total and weighted sum of online softmax
(arXiv 2205.14135); what two threads did of one slab is put together at the end. Slots that no row sees are never read.
"""

from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit, prange
from numba.core.cpu_options import ParallelOptions

from moa.kernels.numba import online, vectors
from moa.kernels.numba.online import NOTHING, OPTIONS, joiner, parts_of, softener, write
from moa.kernels.numba.vectors import SIZE, dots, mix
from moa.plans.span import BLOCK

PARALLEL: dict[str, Any] = {
    # Only the loop over threads is parallel; a team of threads for each small assignment would cost more than it saves.
    "parallel": ParallelOptions(
        {"prange": True}
        | dict.fromkeys(("comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil"), False)
    ),
}
CODE = sha256(b"".join(Path(str(x.__file__)).read_bytes() for x in (online, vectors))).hexdigest()[:8]
"""Hash of all else that is compiled into the step: numba itself looks only at this file to tell whether compiled code
on disk is current."""


@cache
def kernel(heads: int, size: int, kind: str, parallel: bool, capped: bool = False, sunk: bool = False) -> Any:
    """Return the compiled step for groups of `heads` query heads of `size`, and a store of element type `kind`.

    If it is not `parallel`, it computes its shares one after the other and starts no threads.

    Its arguments are those of `moa.kernels.call.Decode` and the store's fields, as arrays. q and out are
    [tokens * kv_heads, heads, size] in float32, or float64 where `kind` is float64; 16-bit keys and values are int16.
    Scores are `capped` by a soft-cap, and `sink_logits` [kv_heads, heads] are read if heads are `sunk`.
    It is compiled once per machine, and numba keeps it on disk.

    Returns:
        (q, out, k, v, keys, values, order, base, capacity, first, sink, cu_seqlens, past, scale, cap, sink_logits,
        threads) -> whether every sequence has a new token; if not, nothing is written.
    """
    wide = np.float64 if kind == "float64" else np.float32
    width, bytes_ = SIZE[kind], np.dtype(wide).itemsize
    soften, join = softener(kind, capped), joiner(kind, sunk)

    def decode(
        q: Any, out: Any, k: Any, v: Any, keys: Any, values: Any, order: Any, base: Any, capacity: Any,
        first: Any, sink: Any, cu_seqlens: Any, past: Any, scale: Any, cap: Any, sink_logits: Any, threads: Any,
    ) -> Any:  # fmt: skip
        groups, slabs, max_seqlen, limit = len(sink), len(order), 0, wide(cap)
        factor = wide(scale / cap) if capped else wide(scale)
        for s in range(len(past)):
            count = cu_seqlens[s + 1] - cu_seqlens[s]
            if count < 1:
                return False
            max_seqlen = max(max_seqlen, count)
        write(k, v, keys, values, base, capacity, sink, cu_seqlens, past)

        edges = np.zeros(slabs + 1, np.int64)  # blocks that hold text, in all slabs before each
        for i in range(slabs):
            s, g = order[i] // groups, order[i] % groups
            edges[i + 1] = edges[i] + min(
                capacity[s, g] // BLOCK, (past[s] + cu_seqlens[s + 1] - cu_seqlens[s] - 1) // BLOCK + 1
            )
        # Thread t's share of slab i is part i + t: both only rise, so no two shares have one number.
        top = np.full((slabs + threads, max_seqlen * heads), NOTHING, wide)
        total = np.zeros((slabs + threads, max_seqlen * heads), wide)
        sums = np.zeros((slabs + threads, max_seqlen * heads, size), wide)
        for t in prange(threads):
            scores = np.empty((heads, BLOCK), wide)
            done, end, i = edges[slabs] * t // threads, edges[slabs] * (t + 1) // threads, 0
            while done < end:
                while edges[i + 1] <= done:
                    i += 1
                s, g, part = order[i] // groups, order[i] % groups, i + t
                sinks, count = sink[g] // BLOCK, cu_seqlens[s + 1] - cu_seqlens[s]
                ring, last = max(1, capacity[s, g] // BLOCK - sinks), (past[s] + count - 1) // BLOCK
                stop = min(end, edges[i + 1])
                for place in range(done - edges[i], stop - edges[i]):
                    block = place if place < sinks else max(place, last - (last - place) % ring)
                    here = (base[s, g] + BLOCK * place) * size * width
                    for w in range(count):
                        at = past[s] + w
                        seen = min(BLOCK, at + 1 - BLOCK * block)
                        if seen <= 0 or (block >= sinks and block < first[g, at // BLOCK]):
                            continue
                        mine = q.ctypes.data + ((cu_seqlens[s] + w) * groups + g) * heads * size * bytes_
                        dots(keys.ctypes.data + here, seen, mine, scores.ctypes.data, heads, size, kind, BLOCK)
                        for h in range(heads):
                            soften(scores, h, seen, factor, limit, top, total, sums, part, w * heads + h)
                        mixed = sums.ctypes.data + (part * max_seqlen + w) * heads * size * bytes_
                        mix(values.ctypes.data + here, seen, scores.ctypes.data, mixed, heads, size, kind, BLOCK)
                done = stop

        for i in range(slabs):
            s, g = order[i] // groups, order[i] % groups
            begin, end = parts_of(edges, i, threads)
            for w in range(cu_seqlens[s + 1] - cu_seqlens[s]):
                for h in range(heads):
                    logit = sink_logits[g, h] if sunk else wide(0)
                    target = out[(cu_seqlens[s] + w) * groups + g, h]
                    join(top, total, sums, i + begin, i + end, w * heads + h, logit, target)
        return True

    # On disk one file lists all code of a function by this name; shapes of their own names cannot be mistaken there.
    decode.__qualname__ = f"decode_{heads}_{size}_{kind}_{BLOCK}_{CODE}" + "_parallel" * parallel
    decode.__qualname__ += "_capped" * capped + "_sunk" * sunk
    return compiled(decode, parallel)


def compiled(step: Any, parallel: bool) -> Any:
    """Return a step's function compiled for one thread or several; kept on disk where there is a folder for it."""
    options = OPTIONS | (PARALLEL if parallel else {})
    try:
        return njit(cache=True, **options)(step)
    except RuntimeError:  # no writable folder: every process compiles it again
        return njit(**options)(step)
