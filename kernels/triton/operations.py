"""Provide the operations of back-end `triton`, which `moa.kernels.call` documents.

The last dimension of q, k and v must be contiguous. No function waits for the device, and no grid depends on what only
the device knows.
"""

import torch
from torch import Tensor

from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.kernels.triton.append import append
from moa.kernels.triton.changing_decode import follow as follow_keydiff
from moa.kernels.triton.changing_prefill import prefill as prefill_keydiff
from moa.kernels.triton.common import require_supported
from moa.kernels.triton.decode import launch_decode
from moa.kernels.triton.prefill import launch_prefill
from moa.kernels.triton.read import launch_read
from moa.plans.span import BLOCK

__all__ = ["append", "attend", "decode", "follow_keydiff", "prefill_keydiff", "read"]

SUMMARISES = True
FEW = 16
"""Mean new tokens per sequence up to which the keys, not the rows, are what fills the device."""
MOST = BLOCK
"""New tokens of one sequence up to which `decode_kernel` is right: no window ends within the blocks they lie in."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None = None, softmax: Softmax
) -> Tensor:
    """Return the attention of the new tokens over the store's past and themselves; write nothing."""
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not len(q):
        return out
    if store is not None and _few(q, batch) and len(store.order) == store.base.numel():  # each slab has a piece
        launch_decode(q, k, v, out, batch=batch, seen=seen, store=store, softmax=softmax, write=False)
    else:
        launch_prefill(q, k, v, out, batch=batch, seen=seen, store=store, softmax=softmax)
    return out


def decode(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
) -> Tensor:
    """Attend with 1 to 64 new tokens of every sequence, and append them, in one call.

    A store with summaries is appended to by a launch of its own, which writes those of the pages that the tokens fill.
    """
    if not _few(q, batch) or store.summaries is not None:
        out = attend(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
        append(store, k, v, batch=batch, seen=seen)
        return out
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if len(q):
        launch_decode(q, k, v, out, batch=batch, seen=seen, store=store, softmax=softmax, write=True)
    return out


def read(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
    softmax: Softmax,
) -> Tensor:  # fmt: skip
    """Append up to 16 new tokens of each sequence and summarise the pages that they fill; attend to chosen pages."""
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if len(q):
        launch_read(q, k, v, out, batch=batch, seen=seen, reading=reading, store=store, softmax=softmax)
    return out


def _few(q: Tensor, batch: Packed) -> bool:
    return len(q) <= FEW * (len(batch.cu_seqlens) - 1) and batch.max_seqlen <= MOST
