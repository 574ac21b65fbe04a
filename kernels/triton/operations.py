"""The operations of back-end `triton`.

`attend`, `append` and `step` take the arguments of `moa.kernels.reference`; the last dimension of q, k and v must be
contiguous. No function waits for the device, and no grid depends on what only the device knows.
"""

import torch
from torch import Tensor

from moa.kernels.store import Store
from moa.kernels.triton.append import append
from moa.kernels.triton.common import require_supported
from moa.kernels.triton.decode import decode
from moa.kernels.triton.prefill import prefill

__all__ = ["append", "attend", "decode", "prefill", "step"]

FEW = 16
"""Mean new tokens per sequence up to which the keys, not the rows, are what fills the device."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, first: Tensor, sink: Tensor, store: Store | None = None, cu_seqlens: Tensor,
    lengths: Tensor, scale: float,
) -> Tensor:  # fmt: skip
    """As `moa.kernels.reference.attend`."""
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not len(q):
        return out
    if store is not None and _few(q, cu_seqlens) and len(store.order) == store.base.numel():  # each slab has a piece
        decode(
            q, k, v, out, first=first, sink=sink, store=store, cu_seqlens=cu_seqlens, lengths=lengths, scale=scale,
            write=False,
        )  # fmt: skip
    else:
        prefill(q, k, v, out, first=first, sink=sink, store=store, cu_seqlens=cu_seqlens, lengths=lengths, scale=scale)
    return out


def step(
    q: Tensor, k: Tensor, v: Tensor, *, first: Tensor, sink: Tensor, store: Store, cu_seqlens: Tensor, lengths: Tensor,
    scale: float,
) -> Tensor:  # fmt: skip
    """As `moa.kernels.reference.step`: at most 64 new tokens per sequence."""
    if not _few(q, cu_seqlens):
        out = attend(q, k, v, first=first, sink=sink, store=store, cu_seqlens=cu_seqlens, lengths=lengths, scale=scale)
        append(store, k, v, sink=sink, cu_seqlens=cu_seqlens, lengths=lengths)
        return out
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if len(q):
        decode(
            q, k, v, out, first=first, sink=sink, store=store, cu_seqlens=cu_seqlens, lengths=lengths, scale=scale,
            write=True,
        )  # fmt: skip
    return out


def _few(q: Tensor, cu_seqlens: Tensor) -> bool:
    return len(q) <= FEW * (len(cu_seqlens) - 1)
