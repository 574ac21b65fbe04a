"""Back-end `numba`, for CPUs: prefill as in back-end `torch`, decode as one compiled call that reads the slabs once.

Library attention multiplies a slab by the few rows of a decode step far below the speed of memory; here each key and
value is loaded once, for all heads of its group. numba compiles on first use, some seconds, and keeps the code on disk.
"""

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from moa.kernels import slabs
from moa.kernels.numba.kernel import kernel
from moa.kernels.sdpa import append, attend
from moa.kernels.store import Store
from moa.plans.span import Ints

__all__ = ["append", "attend", "step"]

KINDS = {torch.float64: "float64", torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor,
    sink: Tensor,
    store: Store,
    starts: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """The decode form, for 1 to 64 new tokens of every sequence: append, then attend from the slabs alone.

    In a graph of `torch.compile` it is that of back-end `torch`, which the compiler can look into.

    Returns:
        [tokens, query_heads, D].
    """
    if torch.compiler.is_compiling():
        return slabs.step(q, k, v, first=first, sink=sink, store=store, starts=starts, lengths=lengths, scale=scale)
    groups, size = k.shape[1:]
    heads = q.shape[1] // groups
    wide = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(wide).contiguous().view(-1, heads, size)
    out = torch.empty_like(queries)
    layout = store.scratch.get("layout") or store.scratch.setdefault("layout", _Layout.of(store))
    threads, before = _threads(), numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        whole = kernel(heads, size, KINDS[store.k.dtype])(
            queries.numpy(), _array(k), _array(v), _array(store.k), _array(store.v), out.numpy(), *layout,
            first.numpy(), sink.numpy(), starts.numpy(), lengths.numpy(), queries.numpy().dtype.type(scale), threads,
        )  # fmt: skip
    finally:
        numba.set_num_threads(before)
    if not whole:
        raise RuntimeError("step needs a new token of every sequence")
    return out.view(q.shape).to(q.dtype)


class _Layout(NamedTuple):
    """A store's layout as arrays: per block its sequence, group, place and slab; per slab its first block; the rest."""

    sequence: Ints
    group: Ints
    place: Ints
    number: Ints
    edges: Ints
    base: Ints
    capacity: Ints

    @classmethod
    def of(cls, store: Store) -> "_Layout":
        place = store.place.numpy()
        edges = np.append(np.flatnonzero(place == 0), len(place))
        number = np.cumsum(place == 0) - 1
        sequence, group, base, capacity = (x.numpy() for x in (store.sequence, store.group, store.base, store.capacity))
        return cls(sequence, group, place, number, edges, base, capacity)


def _threads() -> int:
    """Shares of the work: torch's threads."""
    return torch.get_num_threads()


def _array(x: Tensor) -> Ints:
    """A tensor as an array of the same memory; half precision as bits."""
    x = x.contiguous()
    return (x.view(torch.int16) if x.dtype.itemsize == 2 else x).numpy()
