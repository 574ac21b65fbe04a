"""Prefill where sinks hold other keys than the first.

Such a sink holds other keys in each block. They follow from the keys alone, so they are selected first, for all query
blocks; then library attention is computed as where they stay the same (`moa.kernels.torch.prefill`). This serves every
back-end that has no prefill of its own for sinks of these keys (`Backend.prefill_keydiff`); the back-end itself attends
in all other groups.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff import selection
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, part, slots
from moa.kernels.torch.prefill import attend_alike, index
from moa.plans.span import BLOCK, Ints


def prefill(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, sinks: Sinks, softmax: Softmax,
    backend: Backend,
) -> Tensor:  # fmt: skip
    """Return the attention of the new tokens, and append them to the store.

    Args:
        q, k, v, batch, seen, softmax: See `moa.kernels.call.Attend`.
        store: The past of every sequence; it has room for the new tokens.
        sinks: The sinks of the store.
        backend: Attends where sinks hold the first keys, and appends.

    Returns:
        [tokens, query_heads, D].
    """
    if backend.prefill_keydiff is not None and sinks.are_scored_by(selection.scores):
        return backend.prefill_keydiff(q, k, v, batch=batch, seen=seen, store=store, sinks=sinks, softmax=softmax)
    first_at, (past, counts) = sinks.first_at, batch.on_host()
    here, last = np.flatnonzero(counts), past + np.maximum(counts, 1) - 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    rows, results = (x.unflatten(1, (k.shape[1], -1)) for x in (q, out))
    static = np.setdiff1d(np.arange(k.shape[1]), sinks.groups)
    if len(static):
        which, at = index(static.tolist()), torch.from_numpy(static).to(k.device)
        results[:, which] = backend.attend(
            rows[:, which].flatten(1, 2), k[:, which], v[:, which], batch=batch,
            seen=Visibility(seen.first[at], seen.sink[at]), store=part(store, at),
            softmax=softmax.part(at, k.shape[1]),
        ).unflatten(1, (len(static), -1))  # fmt: skip
    folded = sinks.folded_on_host()
    offsets, moves = np.concatenate([[0], np.cumsum(counts)]).tolist(), []
    for s in here.tolist():
        new = slice(offsets[s], offsets[s + 1])
        edges = first_at(BLOCK * np.arange(past[s] // BLOCK, last[s] // BLOCK + 1))
        for begin, groups in _begun_alike(folded[s], sinks):
            size, leaving = sinks.sink(groups[0]), int(edges[-1, groups].max()) - begin
            place = _places(store, s, groups, int(past[s]), size, begin)
            keys, values = (
                torch.cat([old[place], x[new, index(groups)].transpose(0, 1)], 1)
                for old, x in ((store.k, k), (store.v, v))
            )
            held = torch.arange(min(size, keys.shape[1]), device=k.device).expand(1, len(groups), -1)
            if leaving > 0:
                score, position = sinks.known(keys[:, : size + BLOCK * leaving], s, groups)
                held = selection.held(score, size)
            for which, theirs in _alike(edges[:, groups]):
                mine, states = [groups[i] for i in which], held[: max(0, theirs[-1] - begin) + 1, index(which)]
                its_keys, its_values = keys[index(which)], values[index(which)]
                if len(states) > 1:
                    at = states[-2]  # before the last block leaves, so that it can be taken back
                    contents = _at(at, its_keys, its_values, score[which], position[which])
                    moves.append(partial(sinks.put, store, s, mine, theirs[-1] - 1, *contents))
                attend_alike(
                    rows[new, index(mine)], its_keys, its_values, results[new], index(mine), int(past[s]), theirs,
                    begin, states, softmax.part(mine, k.shape[1]),
                )  # fmt: skip
    backend.append(store, k, v, batch=batch, seen=seen)
    for move in moves:
        move()
    sinks.advance(store, first_at(last), here)
    return out


def _places(store: Store, sequence: int, groups: list[int], past: int, sink: int, begin: int) -> Tensor:
    """Return the slots of the sink's keys, then of all from block `begin` on, of a past: int64 [groups, keys]."""
    device = store.k.device
    later = torch.arange(BLOCK * begin, max(past, BLOCK * begin), device=device)
    position = torch.cat([torch.arange(min(past, sink), device=device), later])
    size = torch.full((len(groups), 1), sink, device=device)
    return slots(position, size, store.base[sequence, groups, None], store.capacity[sequence, groups, None])


def _at(at: Tensor, *texts: Tensor) -> Iterator[Tensor]:
    """Yield rows `at` [groups, n] of tensors [groups, keys, ...]."""
    which = torch.arange(len(at), device=at.device)[:, None]
    return (x[which, at] for x in texts)


def _begun_alike(folded: Ints, sinks: Sinks) -> list[tuple[int, list[int]]]:
    """Return the groups of `sinks` whose sinks hold as many keys of a kind from before a block, and that block.

    `folded` is that of one sequence [kv_heads].
    """
    sets: dict[tuple[int, int, str], list[int]] = {}
    for group in sinks.groups.tolist():
        sets.setdefault((int(folded[group]), sinks.sink(group), sinks.holds[group]), []).append(group)
    return [(begin, groups) for (begin, *_), groups in sets.items()]


def _alike(edges: Ints) -> list[tuple[list[int], list[int]]]:
    """Return columns of `edges` [query blocks, groups] that are alike, and what is in them."""
    sets: dict[tuple[int, ...], list[int]] = {}
    for i, column in enumerate(edges.T.tolist()):
        sets.setdefault(tuple(column), []).append(i)
    return [(which, list(column)) for column, which in sets.items()]
