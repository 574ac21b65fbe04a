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
from llvmlite import ir
from numba import njit, prange, types
from numba.core.cpu_options import ParallelOptions
from numba.extending import intrinsic, overload

from moa.kernels.numba import vectors
from moa.kernels.numba.vectors import FAST, SIZE, dots, mix
from moa.plans.span import BLOCK

NOTHING = -1e30
"""Maximum of no scores; finite, so that differences of it are 0 and not NaN."""

OPTIONS: dict[str, Any] = {"fastmath": set(FAST), "error_model": "numpy"}
PARALLEL: dict[str, Any] = {
    # Only the loop over threads is parallel; a team of threads for each small assignment would cost more than it saves.
    "parallel": ParallelOptions(
        {"prange": True}
        | dict.fromkeys(("comprehension", "fusion", "inplace_binop", "numpy", "reduction", "setitem", "stencil"), False)
    ),
}
CODE = sha256(Path(vectors.__file__).read_bytes()).hexdigest()[:8]
"""Hash of the inner loops: numba itself looks only at this file to tell whether compiled code on disk is current."""


@intrinsic  # type: ignore[untyped-decorator]
def _from_bits(context: Any, bits: Any) -> Any:
    """Return the float32 that has these bits."""
    return types.float32(types.int32), lambda c, builder, s, given: builder.bitcast(given[0], ir.FloatType())


def _exp(x: Any) -> Any:
    """Return e**x, for x <= 0."""
    raise NotImplementedError


@overload(_exp, strict=False)  # type: ignore[untyped-decorator]
def _exp_of(x: Any) -> Any:
    if x == types.float64:
        return lambda x: np.exp(x)

    def single(x: Any) -> Any:
        # 2**n * e**r with |r| <= ln(2)/2, where Taylor's series to r**7 is exact to float32's last place; as plain
        # arithmetic, so that the loop around it becomes vector code.
        x = max(x, np.float32(-87))
        n = np.floor(x * np.float32(1.4426950408889634) + np.float32(0.5))
        r = (x - n * np.float32(0.693359375)) + n * np.float32(2.1219444005469057e-4)  # ln(2) in two parts
        p = np.float32(1 / 5040) * r + np.float32(1 / 720)
        p = p * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(1 / 2)
        p = p * r + np.float32(1)
        p = p * r + np.float32(1)
        return p * _from_bits((np.int32(n) + np.int32(127)) << np.int32(23))

    return single


def _tanh(x: Any) -> Any:
    """Return the hyperbolic tangent of x."""
    raise NotImplementedError


@overload(_tanh, strict=False)  # type: ignore[untyped-decorator]
def _tanh_of(x: Any) -> Any:
    one = np.float64(1) if x == types.float64 else np.float32(1)

    def by_exp(x: Any) -> Any:  # exact to the last place of 1, which a score's cap then scales
        small = _exp(-2 * one * abs(x))
        size = (one - small) / (one + small)
        return -size if x < 0 else size

    return by_exp


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
        for s in range(len(past)):
            for token in range(cu_seqlens[s], cu_seqlens[s + 1]):
                at = past[s] + token - cu_seqlens[s]
                for g in range(groups):
                    sinks, block = sink[g] // BLOCK, at // BLOCK
                    if block >= sinks:
                        block = sinks + (block - sinks) % max(1, capacity[s, g] // BLOCK - sinks)
                    slot = base[s, g] + BLOCK * block + at % BLOCK
                    for d in range(size):
                        keys[slot, d] = k[token, g, d]
                        values[slot, d] = v[token, g, d]

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
                            row = w * heads + h
                            highest = top[part, row]
                            for j in range(seen):
                                scores[h, j] *= factor
                                if capped:
                                    scores[h, j] = limit * _tanh(scores[h, j])
                                highest = max(highest, scores[h, j])
                            shrink = _exp(top[part, row] - highest)
                            top[part, row] = highest
                            added = wide(0)
                            for j in range(seen):
                                scores[h, j] = _exp(scores[h, j] - highest)
                                added += scores[h, j]
                            total[part, row] = total[part, row] * shrink + added
                            if shrink != 1:
                                for d in range(size):
                                    sums[part, row, d] *= shrink
                        mixed = sums.ctypes.data + (part * max_seqlen + w) * heads * size * bytes_
                        mix(values.ctypes.data + here, seen, scores.ctypes.data, mixed, heads, size, kind, BLOCK)
                done = stop

        for i in range(slabs):
            s, g = order[i] // groups, order[i] % groups
            begin = 0  # the first thread with a share of the slab, and the one after the last
            while edges[slabs] * (begin + 1) // threads <= edges[i]:
                begin += 1
            end = begin + 1
            while edges[slabs] * end // threads < edges[i + 1]:
                end += 1
            for w in range(cu_seqlens[s + 1] - cu_seqlens[s]):
                for h in range(heads):
                    row, highest = w * heads + h, sink_logits[g, h] if sunk else wide(NOTHING)
                    for t in range(begin, end):
                        highest = max(highest, top[i + t, row])
                    target = out[(cu_seqlens[s] + w) * groups + g, h]
                    target[:] = 0
                    whole = _exp(sink_logits[g, h] - highest) if sunk else wide(0)
                    for t in range(begin, end):
                        shrink = _exp(top[i + t, row] - highest)
                        whole += shrink * total[i + t, row]
                        for d in range(size):
                            target[d] += shrink * sums[i + t, row, d]
                    for d in range(size):
                        target[d] /= whole
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
