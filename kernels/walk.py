"""Prefill where sinks hold other keys than the first (pattern keydiff_window), piece by piece.

What such a sink holds changes from block to block, so the new tokens go through the back-end in pieces that end where a
block leaves a window: attend, append, and let the block leave. Groups of other rules take all tokens at once.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moa.kernels.backend import Backend
from moa.kernels.sinks import Sinks, part
from moa.kernels.store import Store, allocate
from moa.plans.span import BLOCK, Ints


class Piece(NamedTuple):
    """Some new tokens of some sequences."""

    tokens: Tensor | slice
    """Which of the packed tokens."""
    starts: Tensor
    """As back-ends want them, int32 [sequences + 1]."""
    lengths: Ints
    """int64 [sequences]: position of each sequence's first token here."""
    sequences: Ints
    """Sequences that have tokens here."""


def walk(
    q: Tensor, k: Tensor, v: Tensor, *, first: Tensor, sink: Tensor, store: Store, sinks: Sinks,
    edges: Callable[[Ints], Ints], starts: Tensor, lengths: Tensor, scale: float, backend: Backend,
) -> Tensor:  # fmt: skip
    """Attend to the new tokens and append them.

    Args:
        q, k, v, first, sink, store, starts, lengths, scale: See `moa.kernels.reference.attend`; the store has room.
        sinks: Of the store.
        edges: First block besides the sink that tokens at some positions see: [n] to [n, kv_heads].
        backend: Attends and appends.

    Returns:
        [tokens, query_heads, D].
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    by_group, out_by_group = (x.unflatten(1, (k.shape[1], -1)) for x in (q, out))

    def run(groups: Tensor, slab: Store, piece: Piece) -> None:
        now, where = piece.tokens, {"starts": piece.starts, "lengths": torch.from_numpy(piece.lengths).to(k.device)}
        keys, values = k[now][:, groups], v[now][:, groups]
        rows = by_group[now][:, groups].flatten(1, 2)
        result = backend.attend(
            rows, keys, values, first=first[groups], sink=sink[groups], store=slab, **where, scale=scale
        )
        backend.append(slab, keys, values, sink=sink[groups], **where)
        whole = torch.arange(len(q), device=q.device)[now]
        out_by_group[whole[:, None], groups] = result.unflatten(1, (len(groups), -1))

    mine = torch.from_numpy(sinks.groups).to(k.device)
    others = torch.from_numpy(np.setdiff1d(np.arange(k.shape[1]), sinks.groups)).to(k.device)
    begin = lengths.cpu().numpy()
    if len(others):
        run(others, part(store, others), Piece(slice(None), starts, begin, np.arange(len(begin))))
    slab = part(store, mine)
    for piece in pieces(starts, begin, lambda at: edges(at)[:, sinks.groups]):
        sinks.advance(store, edges(piece.lengths), piece.sequences)
        run(mine, slab, piece)
    return out


def attend_alone(
    q: Tensor, k: Tensor, v: Tensor, *, first: Tensor, sink: Tensor, keydiff: npt.NDArray[np.bool_] | None,
    scale: float, backend: Backend,
) -> Tensor:  # fmt: skip
    """Attention of one text to itself, nothing stored.

    Args:
        q, k, v, first, sink, scale: See `moa.kernels.reference.attend`.
        keydiff: Whose sinks hold the keys of `moa.kernels.keydiff`, bool [kv_heads].
        backend: Attends.

    Returns:
        [tokens, query_heads, D].
    """
    tokens, groups, size = k.shape
    starts = torch.tensor([0, tokens], dtype=torch.int32, device=k.device)
    lengths = torch.zeros(1, dtype=torch.int64, device=k.device)
    if keydiff is None or not keydiff.any():
        return backend.attend(q, k, v, first=first, sink=sink, starts=starts, lengths=lengths, scale=scale)
    store = allocate(np.full((1, groups), -(-tokens // BLOCK) * BLOCK), size, k.dtype, k.device)
    table, host = first.cpu().numpy().astype(np.int64), sink.cpu().numpy().astype(np.int64)
    sinks = Sinks(host, keydiff, 1, k.device)
    return walk(
        q, k, v, first=first, sink=sink, store=store, sinks=sinks, edges=lambda at: table[:, at // BLOCK].T,
        starts=starts, lengths=lengths, scale=scale, backend=backend,
    )  # fmt: skip


def pieces(starts: Tensor, lengths: Ints, edges: Callable[[Ints], Ints]) -> Iterator[Piece]:
    """Cut every sequence's new tokens where `edges` change, and take the first part of each, then the second, …."""
    offsets = starts.cpu().numpy().astype(np.int64)
    parts = []
    for length, count in zip(lengths, np.diff(offsets), strict=True):
        blocks = np.arange(length // BLOCK + 1, -(-(length + count) // BLOCK))
        moved = (edges(BLOCK * blocks) != edges(BLOCK * (blocks - 1))).any(1)
        parts.append(np.unique([length, *(BLOCK * blocks[moved]), length + count]))
    for i in range(max(len(ends) for ends in parts) - 1):
        here = np.array([s for s, ends in enumerate(parts) if i + 1 < len(ends)])
        spans = [offsets[s] + parts[s][i : i + 2] - lengths[s] for s in here]
        counts = np.zeros(len(parts), np.int64)
        counts[here] = [end - begin for begin, end in spans]
        position = np.array([ends[min(i, len(ends) - 1)] for ends in parts])
        tokens: Tensor | slice = slice(*map(int, spans[0]))
        if len(here) > 1:
            tokens = torch.from_numpy(np.concatenate([np.arange(*span) for span in spans])).to(starts.device)
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        yield Piece(tokens, torch.from_numpy(bounds).to(starts.device), position, here)
