"""Make the cases: rules by name, tables on the device, stores full of random keys."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moa.kernels.call import Visibility
from moa.kernels.store import Store, allocate, capacities
from moa.plans.span import BLOCK, Ints, Reach, first_block, linear, live_blocks, span


@dataclass(frozen=True)
class Mix:
    """Rules of one layer's groups."""

    name: str
    sink: Ints
    alpha: Ints
    beta256: Ints

    def visibility(self, length: int, device: torch.device) -> Visibility:
        """Return what rows at positions below `length` see."""
        first = first_block(*self._columns(), np.arange(-(-length // BLOCK))).astype(np.int32)
        sink = self.sink.astype(np.int32)
        return Visibility(torch.from_numpy(first).to(device), torch.from_numpy(sink).to(device))

    def density(self, length: int) -> float:
        """Return the keys that the last query sees, as a share of all keys."""
        return float(span(*self._columns(), length).mean() / length)

    def kept(self, length: int) -> float:
        """Return the visible causal pairs, as a share of all causal pairs."""
        n = np.arange(1, length + 1)
        return float(span(*self._columns(), n).mean(0).sum() / n.sum())

    def live_bytes(self, length: int, batch: int, row_bytes: int) -> int:
        """Return the bytes of keys and values in the blocks that one decode step must read."""
        return int(2 * batch * BLOCK * row_bytes * live_blocks(self.sink, self.alpha, self.beta256, length).sum())

    def store(self, lengths: Ints, dim: int, dtype: torch.dtype, device: torch.device, room: int = BLOCK) -> Store:
        """Return slabs for `lengths` and `room` tokens more, filled with random numbers."""
        reach = Reach(np.column_stack([self.sink, self.alpha, self.beta256]), [linear] * len(self.sink))
        store = allocate(capacities(reach, lengths + room), dim, dtype, device)
        store.k.normal_()
        store.v.normal_()
        return store

    def _columns(self) -> tuple[Ints, Ints, Ints]:
        return self.sink[:, None], self.alpha[:, None], self.beta256[:, None]


def mixes(groups: int, window: int = 1024) -> list[Mix]:
    """Return the mixes: dense; all heads at a half or a quarter; half of them full; one in eight full, others mixed.

    Args:
        groups: KV heads.
        window: Of heads that are not full where half of them are; the others' are a quarter of it to four times.
    """
    sink, zero = np.full(groups, 64), np.zeros(groups, np.int64)
    index = np.arange(groups)
    half, eighth = index < (groups + 1) // 2, index % 8 == 0
    return [
        Mix("dense", sink, zero, zero + 256),
        Mix("all at 1/2", sink, zero, zero + 128),
        Mix("all at 1/4", sink, zero, zero + 64),
        Mix(f"half full, half {window:,}", sink, np.where(half, 0, window), np.where(half, 256, 0)),
        Mix("1 in 8 full, others mixed", sink, np.where(eighth, 0, window // 4 << index % 5), np.where(eighth, 256, 0)),
    ]


def packed(lengths: Ints, heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random [tokens, heads, D], and `cu_seqlens`."""
    cu_seqlens = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)).to(device)
    return torch.randn(int(lengths.sum()), heads, dim, device=device).to(dtype), cu_seqlens
