"""Let blocks leave the window of sinks of other keys than the first, before a decode step: three launches, no wait.

The grid is the same at every step, and what moves is decided on the device. So a CUDA graph can hold it.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.store import Store
from moa.kernels.triton.common import on_device
from moa.kernels.triton.moves import leave_kernel, put_kernel
from moa.kernels.triton.selection import scores_kernel
from moa.kernels.triton.tiles import scores_warps
from moa.plans.span import BLOCK


class Copies(NamedTuple):
    """Where rows of sinks lie while they change places: [sequences * groups, most + 64] of each."""

    k: Tensor
    v: Tensor
    score: Tensor
    position: Tensor
    left: Tensor
    """int32 [sequences * groups]: the block whose place the last 64 rows take, -1 where nothing moves."""

    @classmethod
    def of(cls, store: Store, sinks: Sinks) -> "Copies":
        """Return room for the copies of all sinks that change."""
        pairs, rows = len(sinks.folded) * sinks.moving, sinks.score.shape[-1]
        k, v = (torch.empty((pairs, rows, x.shape[1]), dtype=x.dtype, device=x.device) for x in (store.k, store.v))
        score, position = (
            torch.empty((pairs, rows), dtype=x.dtype, device=x.device) for x in (sinks.score, sinks.position)
        )
        left = torch.empty(pairs, dtype=torch.int32, device=sinks.folded.device)
        return cls(k, v, score, position, left)

    def put(self, store: Store, sinks: Sinks, seen: Visibility) -> None:
        """Write the rows to their slots."""
        most, dim = sinks.score.shape[-1] - BLOCK, store.k.shape[1]
        put_kernel[(most // BLOCK + 1, len(self.left))](
            store.k, store.v, self.k, self.v, sinks.score, sinks.position, self.score, self.position, self.left,
            sinks.folded, sinks.can_undo, sinks.groups_on_device, seen.sink, store.base, store.capacity,
            seen.first.shape[0], sinks.moving, most, D=dim, WIDTH=triton.next_power_of_2(dim), num_warps=4,
        )  # fmt: skip


def follow(store: Store, sinks: Sinks, *, batch: Packed, seen: Visibility) -> None:
    """Update the sinks to what each sequence's one new token sees, as `Sinks.follow` does."""
    most, dim, copies = sinks.score.shape[-1] - BLOCK, store.k.shape[1], Copies.of(store, sinks)
    found, width = torch.empty_like(copies.score), triton.next_power_of_2(dim)
    where = (
        sinks.groups_on_device, sinks.folded, *seen, store.base, store.capacity, batch.cu_seqlens, batch.past,
        seen.first.shape[1], seen.first.shape[0], sinks.moving, most,
    )  # fmt: skip
    with on_device(store.k):
        scores_kernel[(most // BLOCK + 1, len(copies.left))](
            store.k, store.k, found, sinks.score, sinks.position, *where, most + BLOCK, dim, 0, D=dim,
            WIDTH=triton.next_power_of_2(dim // 2), num_warps=scores_warps(dim),
        )  # fmt: skip
        leave_kernel[(len(copies.left),)](
            store.k, store.v, copies.k, copies.v, found, sinks.position, *copies[2:], *where, D=dim, WIDTH=width,
            num_warps=4,
        )  # fmt: skip
        copies.put(store, sinks, seen)
