"""The cache's packed store of one layer: flat K and V, one slab of whole blocks per (sequence, group).

A slab is the sink's blocks, then a ring of blocks. With S = sink/64 and ring = capacity/64 - S, block j of the text
lies at slab block j for j < S, else at S + (j - S) mod ring. Slabs of equal capacity are adjacent (a `Run`): attention
reads them in place as one [slabs, slots, D] view. Slots whose key no row needs may hold any finite number; for all
back-ends but `torch` also NaN.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moa.plans.reading import SUMMARIES, summary_bytes
from moa.plans.span import BLOCK, Ints, Reach

ENDLESS = 1 << 30


class Run(NamedTuple):
    """Adjacent slabs of equal capacity, in the order of their pairs."""

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
    """[slots, D]; the same tensor as `k` where one vector of a token is both (`moa.hf.latent`)."""
    base: Tensor
    """int64 [sequences, kv_heads]: first slot of each slab."""
    capacity: Tensor
    """int32 [sequences, kv_heads]: slots of each slab, a multiple of 64."""
    sequence: Tensor
    """int64 [slots/64]: sequence that owns each block of the store."""
    group: Tensor
    """int64 [slots/64]: group that owns it."""
    place: Tensor
    """int64 [slots/64]: which block of its slab it is."""
    order: Tensor
    """int64 [slabs]: sequence * kv_heads + group of each slab, in the order in which they lie."""
    runs: tuple[Run, ...]
    """The same layout, known to the host."""
    summaries: Tensor | None = None
    """uint8 [slots/64, bytes]: each block's page summaries (`moa.kernels.paged.summaries`); None where none is read."""
    scratch: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Data that a back-end derives from the layout once, such as a work list."""

    @property
    def contents(self) -> tuple[Tensor, ...]:
        """The tensors that hold what is kept: keys, values where they are others, and summaries where there are any."""
        held = (self.k, None if self.v is self.k else self.v, self.summaries)
        return tuple(x for x in held if x is not None)

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """The same, as views [slots/64, what a block holds]."""
        return tuple(x if x is self.summaries else x.view(-1, BLOCK * x.shape[1]) for x in self.contents)

    @property
    def nbytes(self) -> int:
        """The bytes allocated for keys, values and summaries."""
        return sum(x.nbytes for x in self.contents)


def capacities(reach: Reach, lengths: Ints) -> Ints:
    """Return the slots that each slab needs at these lengths.

    Args:
        reach: The reach of the groups' rules, of shape [kv_heads].
        lengths: Tokens per sequence [sequences].

    Returns:
        int64 [sequences, kv_heads], multiples of 64.
    """
    return BLOCK * reach.cache_blocks(np.asarray(lengths, np.int64)).T


def allocate(
    capacity: Ints, head_size: int, dtype: torch.dtype, device: torch.device | str, *, summaries: bool = False,
    alone: bool = False,
) -> Store:  # fmt: skip
    """Return a store with `capacity` slots per slab [sequences, kv_heads], all zeros, so that every slot is finite.

    It can be written outside of inference mode even if it was made inside it. With `summaries` it has room for those of
    its pages; keys `alone` are their own values.
    """
    capacity = np.ascontiguousarray(capacity, np.int64)  # kernels take pointers to the tables
    assert (capacity % BLOCK == 0).all()
    groups = capacity.shape[1]
    pairs = np.argsort(capacity.ravel(), kind="stable")  # by size: runs of equal slabs
    sizes = capacity.ravel()[pairs]
    starts = np.cumsum(sizes) - sizes
    base = np.empty(capacity.size, np.int64)
    base[pairs] = starts
    slots = int(sizes.sum())

    def tensor(x: Ints, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.as_tensor(x, dtype=dtype).to(device)

    summary = SUMMARIES * summary_bytes(head_size)
    with torch.inference_mode(False):
        keys = torch.zeros(slots, head_size, dtype=dtype, device=device)
        return Store(
            k=keys,
            v=keys if alone else torch.zeros(slots, head_size, dtype=dtype, device=device),
            base=tensor(base.reshape(capacity.shape)),
            capacity=tensor(capacity, torch.int32),
            sequence=tensor(np.repeat(pairs // groups, sizes // BLOCK)),
            group=tensor(np.repeat(pairs % groups, sizes // BLOCK)),
            place=tensor(np.arange(slots // BLOCK) - np.repeat(starts // BLOCK, sizes // BLOCK)),
            order=tensor(pairs[sizes > 0]),
            runs=tuple(
                Run(int(starts[sizes == size][0]), int(size), tensor(pairs[sizes == size]))
                for size in np.unique(sizes)
                if size
            ),
            summaries=torch.zeros(slots // BLOCK, summary, dtype=torch.uint8, device=device) if summaries else None,
        )


def slab_block(block: Tensor, sink_blocks: Tensor, capacity: Tensor) -> Tensor:
    """Return the place in its slab, in blocks, of block `block` of the text; all arguments broadcast."""
    ring = (capacity // BLOCK - sink_blocks).clamp(min=1)
    return torch.where(block < sink_blocks, block, sink_blocks + (block - sink_blocks) % ring)


def period(place: Tensor, sink_blocks: Tensor, capacity: Tensor) -> Tensor:
    """Return after how many blocks of text slab block `place` is overwritten: the ring's length; never in the sink."""
    return torch.where(place < sink_blocks, ENDLESS, (capacity // BLOCK - sink_blocks).clamp(min=1))


def text_block(place: Tensor, period: Tensor, last: Tensor) -> Tensor:
    """Return the block of text that slab block `place` holds when `last` is the newest, the inverse of `slab_block`.

    Where the text is not that long yet, it is the block that will lie there first (greater than `last`). All arguments
    broadcast.
    """
    return torch.maximum(place, last - (last - place) % period)


def slots(position: Tensor, sink: Tensor, base: Tensor, capacity: Tensor) -> Tensor:
    """Return the slots (int64) of positions of the text, in the slab at `base` with `capacity` slots; all broadcast."""
    return base + BLOCK * slab_block(position // BLOCK, sink // BLOCK, capacity) + position % BLOCK


def find_tokens(cu_seqlens: Tensor, past: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the sequence and the position of each packed token."""
    token = torch.arange(tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), token, right=True)
    return sequence, past[sequence] + token - cu_seqlens[sequence]


def move(old: Store, new: Store, *, sink: Tensor, lengths: Tensor) -> None:
    """Copy every block that both stores have room for from `old` into `new` (growth: another ring size).

    Args:
        old: Store to read.
        new: Store to write, of the same sequences and groups; holds all blocks still wanted.
        sink: int [kv_heads], tokens.
        lengths: int64 [sequences], tokens that `old` holds of each sequence.
    """
    sequence, group = new.sequence, new.group
    sinks, last = sink[group] // BLOCK, (lengths[sequence] - 1) // BLOCK
    room = old.capacity[sequence, group]
    block = text_block(new.place, period(new.place, sinks, new.capacity[sequence, group]), last)
    place = slab_block(block, sinks, room)
    kept = (block <= last) & (text_block(place, period(place, sinks, room), last) == block)
    source = (old.base[sequence, group] // BLOCK + place)[kept]
    for to, start in zip(new.blocks, old.blocks, strict=True):
        to[kept] = start.index_select(0, source)


def select(store: Store, sequences: Tensor) -> Store:
    """Return a new store whose sequence i is a copy of sequence `sequences[i]` (beam reorder, repeats, subsets)."""
    capacity = store.capacity[sequences].to("cpu", torch.int64).numpy()
    kind, summaries = (store.k.shape[-1], store.k.dtype, store.k.device), store.summaries is not None
    new = allocate(capacity, *kind, summaries=summaries, alone=store.v is store.k)
    for run in new.runs:
        rows, groups = run.pairs // store.base.shape[1], run.pairs % store.base.shape[1]
        within = torch.arange(run.slots // BLOCK, device=store.k.device)
        source = (store.base[sequences[rows], groups][:, None] // BLOCK + within).flatten()
        span = slice(run.start // BLOCK, run.start // BLOCK + len(source))
        for to, start in zip(new.blocks, store.blocks, strict=True):
            to[span] = start.index_select(0, source)
    return new


def part(store: Store, groups: Tensor) -> Store:
    """Return the store with only some of its groups, as `attend` and `append` need it."""
    return replace(
        store, base=store.base[:, groups].contiguous(), capacity=store.capacity[:, groups].contiguous(), scratch={}
    )
