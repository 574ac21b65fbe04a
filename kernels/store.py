"""The cache's packed store of one layer: flat K and V, one slab of whole blocks per (sequence, group).

A slab is the sink's blocks, then a ring of blocks. With S = sink/64 and ring = capacity/64 - S, block j
of the text lies at slab block j for j < S, else at S + (j - S) mod ring. Slabs of equal capacity are
adjacent (a `Run`): attention reads them in place as one [slabs, slots, D] view. Slots without a wanted key
may hold anything, NaN included.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from moa.plans.span import BLOCK, Ints, cache_blocks
from torch import Tensor


class Run(NamedTuple):
    """Adjacent slabs of equal capacity, group-major."""

    start: int
    """First slot of the first slab."""
    slots: int
    """Slots of each slab."""
    pairs: Tensor
    """int64 [slabs]: sequence * kv_heads + group of each slab, on the store's device."""


@dataclass
class Store:
    """Keys and values of one layer. Build it with `allocate`; `append` writes `k` and `v` in place."""

    k: Tensor
    """[slots, D]."""
    v: Tensor
    """[slots, D]."""
    base: Tensor
    """int64 [sequences, kv_heads]: first slot of each slab."""
    capacity: Tensor
    """int32 [sequences, kv_heads]: slots of each slab, a multiple of 64."""
    runs: tuple[Run, ...]
    """The same layout, known to the host."""
    scratch: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What a back-end derives from the layout once, such as a work list."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return self.k.nbytes + self.v.nbytes


def capacities(sink: Ints, alpha: Ints, beta256: Ints, lengths: Ints) -> Ints:
    """Slots each slab needs at these lengths, by `moa.plans.span.cache_blocks`.

    Args:
        sink: Sink tokens [kv_heads].
        alpha: Constant part of the span, tokens [kv_heads].
        beta256: Growth of the span in 1/256ths [kv_heads].
        lengths: Tokens per sequence [sequences].

    Returns:
        int64 [sequences, kv_heads], multiples of 64.
    """
    return BLOCK * cache_blocks(sink, alpha, beta256, np.asarray(lengths, np.int64)[:, None])


def allocate(capacity: Ints, head_size: int, dtype: torch.dtype, device: torch.device | str) -> Store:
    """An empty store with `capacity` slots per slab [sequences, kv_heads]; equal ones are adjacent."""
    capacity = np.asarray(capacity, np.int64)
    assert (capacity % BLOCK == 0).all()
    by_group = capacity.T.ravel()
    order = np.argsort(by_group, kind="stable")
    starts = np.empty_like(by_group)
    starts[order] = np.cumsum(by_group[order]) - by_group[order]
    runs, sequences, groups = [], *capacity.shape
    for size in np.unique(by_group):
        slabs = np.flatnonzero(by_group == size)
        pairs = slabs % sequences * groups + slabs // sequences
        runs.append(Run(int(starts[slabs[0]]), int(size), torch.from_numpy(pairs).to(device)))
    slots = int(by_group.sum())
    return Store(
        k=torch.zeros(slots, head_size, dtype=dtype, device=device),
        v=torch.zeros(slots, head_size, dtype=dtype, device=device),
        base=torch.from_numpy(np.ascontiguousarray(starts.reshape(groups, sequences).T)).to(device),
        capacity=torch.from_numpy(capacity.astype(np.int32)).to(device),
        runs=tuple(runs),
    )


def slab_block(block: Tensor, sink_blocks: Tensor, capacity: Tensor) -> Tensor:
    """Where block `block` of the text lies in its slab, in blocks; all broadcast."""
    ring = (capacity // BLOCK - sink_blocks).clamp(min=1)
    return torch.where(block < sink_blocks, block, sink_blocks + (block - sink_blocks) % ring)


def text_block(slab: Tensor, sink_blocks: Tensor, capacity: Tensor, last: Tensor) -> Tensor:
    """The newest block of the text, at most `last`, whose place is slab block `slab`; all broadcast.

    Negative where the text has not reached that place. The inverse of `slab_block`.
    """
    ring = (capacity // BLOCK - sink_blocks).clamp(min=1)
    newest = last - (last - slab) % ring
    newest = torch.where(newest < sink_blocks, -1, newest)
    return torch.where(slab < sink_blocks, torch.where(slab <= last, slab, -1), newest)


def slots(
    store: Store, sequence: Tensor | int, group: Tensor | int, position: Tensor, sink: Tensor
) -> Tensor:
    """int64 slots of positions; `sequence`, `group`, `position` broadcast; `sink` is [kv_heads], tokens."""
    block = slab_block(position // BLOCK, sink[group] // BLOCK, store.capacity[sequence, group])
    return store.base[sequence, group] + BLOCK * block + position % BLOCK


def move(old: Store, new: Store, *, sink: Tensor, lengths: Tensor) -> None:
    """Copy every block that both stores have room for from `old` into `new` (growth: another ring size).

    Args:
        old: Store to read.
        new: Store to write, of the same sequences and groups; holds all blocks still wanted.
        sink: int [kv_heads], tokens.
        lengths: int64 [sequences], tokens that `old` holds of each sequence.
    """
    device, sequences = old.k.device, old.base.shape[0]
    sink_blocks = (sink // BLOCK).to(torch.int64).expand(sequences, -1)
    last = ((lengths + BLOCK - 1) // BLOCK - 1)[:, None].expand_as(sink_blocks)
    slabs = (new.capacity // BLOCK).to(torch.int64)
    pair = torch.repeat_interleave(torch.arange(slabs.numel(), device=device), slabs.flatten())
    place = torch.arange(pair.numel(), device=device) - (slabs.flatten().cumsum(0) - slabs.flatten())[pair]

    def of(x: Tensor) -> Tensor:
        return x.flatten()[pair]

    block = text_block(place, of(sink_blocks), of(new.capacity), of(last))
    source = slab_block(block, of(sink_blocks), of(old.capacity))
    kept = (block >= 0) & (text_block(source, of(sink_blocks), of(old.capacity), of(last)) == block)
    target = (of(new.base) // BLOCK + place)[kept]
    source = (of(old.base) // BLOCK + source)[kept]
    for to, frm in ((new.k, old.k), (new.v, old.v)):
        width = BLOCK * to.shape[-1]
        to.view(-1, width).index_copy_(0, target, frm.view(-1, width).index_select(0, source))


def select(store: Store, sequences: Tensor) -> Store:
    """A new store whose sequence i is a copy of sequence `sequences[i]` (beam reorder, repeats, subsets)."""
    capacity = store.capacity[sequences].to("cpu", torch.int64).numpy()
    new = allocate(capacity, store.k.shape[-1], store.k.dtype, store.k.device)
    for run in new.runs:
        rows, groups = run.pairs // store.base.shape[1], run.pairs % store.base.shape[1]
        source = store.base[sequences[rows], groups][:, None] + torch.arange(run.slots, device=store.k.device)
        span = slice(run.start, run.start + source.numel())
        new.k[span] = store.k.index_select(0, source.flatten())
        new.v[span] = store.v.index_select(0, source.flatten())
    return new
