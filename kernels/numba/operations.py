"""Provide the operations of back-end `numba`: prefill as in back-end `torch`, decode as one compiled call.

Library attention multiplies a slab by the few rows of a decode step far below the speed of memory; here each key and
value is loaded once, for all heads of its group. numba compiles on first use, some seconds, and keeps the code on disk.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.numba import read as reads
from moa.kernels.numba.decode import kernel
from moa.kernels.numba.threads import check, shared
from moa.kernels.numba.vectors import SIZE
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, allocate
from moa.kernels.torch import operations
from moa.kernels.torch.operations import append, attend
from moa.plans.span import BLOCK

__all__ = ["append", "attend", "decode", "read", "warm_up"]

KINDS = {getattr(torch, name): name for name in SIZE}


def decode(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
) -> Tensor:
    """Append 1 to 64 new tokens of every sequence, then attend from the slabs alone.

    In a graph of `torch.compile` the decode of back-end `torch` runs instead, which the compiler can trace.
    """
    if torch.compiler.is_compiling():
        return operations.decode(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
    assert q.dtype == k.dtype == v.dtype == store.k.dtype
    groups, size = k.shape[1:]
    heads = q.shape[1] // groups
    queries = q.to(torch.promote_types(q.dtype, torch.float32)).contiguous()
    out = torch.empty_like(queries)
    shares, sinks = _shares(), softmax.sinks_of(groups)
    logits = queries.new_empty(0, 0) if sinks is None else sinks.to(out.dtype)
    with shared() if shares > 1 else nullcontext():
        whole = kernel(heads, size, KINDS[q.dtype], shares > 1, softmax.cap is not None, sinks is not None)(
            *(x.view(-1, heads, size).numpy() for x in (queries, out)), _array(k), _array(v),
            *_unchanging(store, batch, seen), batch.past.numpy(), float(softmax.scale),
            float(softmax.cap or 0), logits.numpy(), shares,
        )  # fmt: skip
    if not whole:
        raise RuntimeError("decode needs a new token of every sequence")
    return out.to(q.dtype)


def read(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
    softmax: Softmax,
) -> Tensor:  # fmt: skip
    """Append up to 16 new tokens of each sequence and summarise the pages that they fill; attend to chosen pages."""
    assert q.dtype == k.dtype == v.dtype == store.k.dtype
    assert store.summaries is not None
    groups, size = k.shape[1:]
    heads = q.shape[1] // groups
    queries = q.to(torch.promote_types(q.dtype, torch.float32)).contiguous()
    out = torch.empty_like(queries)
    shares, sinks = _shares(), softmax.sinks_of(groups)
    logits = queries.new_empty(0, 0) if sinks is None else sinks.to(out.dtype)
    keys, values, order, base, capacity, first, sink, cu_seqlens = _unchanging(store, batch, seen)
    step = reads.kernel(heads, size, KINDS[q.dtype], shares > 1, softmax.cap is not None, sinks is not None)
    with shared() if shares > 1 else nullcontext():
        attended = step(
            *(x.view(-1, heads, size).numpy() for x in (queries, out)), _array(k), _array(v), keys, values,
            store.summaries.numpy(), order, base, capacity, first, sink, reading.share.numpy(), reading.given.numpy(),
            cu_seqlens, batch.past.numpy(), float(softmax.scale), float(softmax.cap or 0), logits.numpy(), shares,
        )  # fmt: skip
    if not attended:  # every row reads all that it sees
        return decode(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
    return out.to(q.dtype)


@dataclass
class _Unchanging:
    """Arrays that stay the same from step to step, and the tensors that they share memory with."""

    first: Tensor
    sink: Tensor
    cu_seqlens: Tensor
    arrays: list[Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Return None, so that a copied store makes its own arrays: copied ones would not share its tensors' memory."""


def _unchanging(store: Store, batch: Packed, seen: Visibility) -> list[Any]:
    """Return the store's keys, values and layout, and the tables, as arrays.

    They are kept in the store, since making an array of a tensor takes as long as attending to 300 keys.
    """
    kept, (first, sink), cu_seqlens = store.scratch.get("arrays"), seen, batch.cu_seqlens
    if not (kept and kept.first is first and kept.sink is sink and kept.cu_seqlens is cu_seqlens):
        layout = (store.order, store.base, store.capacity, first, sink, cu_seqlens)
        arrays = [_array(store.k), _array(store.v), *(x.numpy() for x in layout)]
        kept = store.scratch["arrays"] = _Unchanging(first, sink, cu_seqlens, arrays)
    return kept.arrays


def warm_up(
    heads: int, size: int, dtype: torch.dtype, capped: bool = False, sunk: bool = False, reads: bool = False
) -> None:
    """Compile what a step of this shape needs, or read it from disk, and start its threads.

    Raises:
        Unsupported: Threads that were started before a fork are lost.
    """
    check()
    if dtype in KINDS:
        _take_one(heads, size, dtype, capped, sunk, reads, _shares() > 1)


@cache
def _take_one(heads: int, size: int, dtype: torch.dtype, capped: bool, sunk: bool, reads: bool, parallel: bool) -> None:
    softmax = Softmax(1.0, 1.0 if capped else None, torch.zeros(heads) if sunk else None)
    none, one = torch.zeros(1, dtype=torch.int64, device="cpu"), torch.zeros(1, 1, size, dtype=dtype, device="cpu")
    step = partial(read, reading=Reading(none.int() + 1, none.int())) if reads else decode
    step(  # of a first token: `read` ends in `decode`, so that both are compiled
        one.expand(1, heads, size), one, one,
        batch=Packed(torch.arange(2, dtype=torch.int32, device="cpu"), past=none, max_seqlen=1, nonempty=True),
        seen=Visibility(none[None].int(), none.int()), softmax=softmax,
        store=allocate(np.array([[BLOCK]]), size, dtype, "cpu", summaries=reads),
    )  # fmt: skip


def _shares() -> int:
    """Return the number of equal shares, one per thread, into which a step divides the blocks."""
    return torch.get_num_threads()


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    """Return a tensor as an array that shares its memory; half precision as 16-bit integers."""
    x = x.contiguous()
    return (x.view(torch.int16) if x.dtype.itemsize == 2 else x).numpy()
