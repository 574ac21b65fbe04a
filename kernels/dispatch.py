"""Decide, for all callers, how an attention call is computed: as a decode step, a read, or one of two prefills."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.keydiff.following import follow
from moa.kernels.keydiff.prefill import prefill
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.paged import calls
from moa.kernels.sink_contents import SCORES
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, allocate, select
from moa.plans.span import BLOCK


def computed_by(backend: Backend, moving: bool, reads: bool) -> tuple[str, str]:
    """Return in words what computes prefill and decode (`attend`).

    Args:
        backend: What computes.
        moving: Whether keys move into the sinks of some groups.
        reads: Whether some groups read less than they keep.
    """
    name = backend.name
    prefill, decode = name, f"{name}, by pages that it chooses" if reads else name
    if moving and (backend.prefill_keydiff is None or (reads and not backend.summarises)):
        prefill = f"{name}, and torch's library attention in groups into whose sinks keys move"
    elif moving:
        prefill = f"{name}, which also chooses the keys of sinks"
    if moving and backend.follow_keydiff is None:
        decode += ", and torch moves keys into sinks when a block ends"
    elif moving:
        decode += ", and its own kernels move keys into sinks when a block ends"
    return prefill, decode


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None, softmax: Softmax,
    backend: Backend, reading: Reading | None = None, sinks: Sinks | None = None,
    grown: Callable[[], Store] | None = None, again: bool = False,
) -> Tensor:  # fmt: skip
    """Attend to the new tokens and, if they are to be kept, store them.

    - By `Backend.read` for sequences with a past and up to 16 new tokens, where some groups read less than they keep;
      their neighbours with more tokens are computed as below.
    - As a decode step (`Backend.decode`) where there is a past and every sequence has new tokens to be kept: up to 64
      of them, or one where keys move into sinks.
    - Otherwise by `moa.kernels.keydiff.prefill` where keys move into sinks.
    - Otherwise as a prefill: `Backend.attend`, then `Backend.append`.

    Args:
        q, k, v, batch, seen, store, softmax: See `moa.kernels.call.Attend`.
        backend: What computes.
        reading: How much rows read, in a store with summaries; None where all read what they see.
        sinks: What the store's sinks hold, where keys move into them; None where they hold the first keys.
        grown: Returns the store with room for the new tokens, which are kept there. Where they are not kept it is None,
            and a store with `sinks`, or for `reading`, has the room already.
        again: Whether a further call with the same new tokens follows, as where layers share keys: it must find a store
            that serves it as well as this call. Only steps of few tokens write then, which may be done twice.

    Returns:
        [tokens, query_heads, D].
    """
    if reading is not None:
        backend = calls.summarising(backend)
    whole = partial(_attend, seen=seen, softmax=softmax, backend=backend)
    if reading is None or store is None:
        return whole(q, k, v, batch=batch, store=store, grown=grown, again=again, sinks=sinks)
    short, long = calls.parts(batch, seen, reading, k.shape[2], decides=backend.summarises and sinks is None)
    if short is None:
        return whole(q, k, v, batch=batch, store=store, grown=grown, again=again, sinks=sinks)
    store = store if grown is None else grown()
    if again and sinks is not None and batch.max_seqlen > 1:
        store, sinks = _copied(store, sinks)
    read = partial(calls.read, seen=seen, reading=reading, store=store, softmax=softmax, sinks=sinks, backend=backend)
    if long is None:
        return read(q, k, v, batch=short)
    out, room = torch.empty_like(q, memory_format=torch.contiguous_format), store
    mine = calls.tokens_of(short, batch)
    out[mine] = read(q[mine], k[mine], v[mine], batch=short)
    mine = calls.tokens_of(long, batch)
    kept = None if grown is None else lambda: room
    out[mine] = whole(q[mine], k[mine], v[mine], batch=long, store=store, grown=kept, again=again, sinks=sinks)
    return out


def _attend(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None, softmax: Softmax,
    backend: Backend, sinks: Sinks | None, grown: Callable[[], Store] | None, again: bool,
) -> Tensor:  # fmt: skip
    """Do what `attend` does, all rows reading what they see."""
    few = batch.nonempty and batch.max_seqlen <= (BLOCK if sinks is None else 1)
    if grown is not None and store is not None and few:
        store = grown()
        if sinks is not None:
            follow(store, sinks, batch=batch, seen=seen, backend=backend)
        return backend.decode(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
    if sinks is not None:
        store = store if grown is None else grown()
        assert store is not None
        if again:
            store, sinks = _copied(store, sinks)
        return prefill(q, k, v, batch=batch, seen=seen, store=store, sinks=sinks, softmax=softmax, backend=backend)
    out = backend.attend(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
    if grown is not None and not again:
        backend.append(grown(), k, v, batch=batch, seen=seen)
    return out


def _copied(store: Store, sinks: Sinks) -> tuple[Store, Sinks]:
    """Return copies, which a call may change."""
    every = torch.arange(len(store.base), device=store.k.device)
    return select(store, every), sinks.select(every)


def attend_given(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, past: tuple[Tensor, Tensor, Packed] | None, seen: Visibility,
    holds: Sequence[str], softmax: Softmax, backend: Backend, reading: Reading | None = None,
) -> Tensor:  # fmt: skip
    """Attend to texts whose keys are all given, and keep nothing.

    Args:
        q, k, v, batch, softmax: See `moa.kernels.call.Attend`.
        past: Keys and values of the tokens before the new ones, and how they are packed; None where there are none.
        seen: What the rows of all tokens see, past and new.
        holds: Which keys the sinks hold, names in `moa.kernels.sink_contents.SCORES`: one per KV head.
        backend: What computes.
        reading: How much rows read; None where all read what they see.

    Returns:
        [tokens, query_heads, D].
    """
    moving = any(SCORES[name] is not None for name in holds)
    store, sinks = None, None
    if past is None:
        reading = None
    writer = backend if reading is None else calls.summarising(backend)
    if past is not None or moving:
        room = (0 if past is None else past[2].max_seqlen) + (batch.max_seqlen if moving or reading is not None else 0)
        slots = np.full((len(batch.past), k.shape[1]), -(-room // BLOCK) * BLOCK)
        store = allocate(slots, k.shape[2], k.dtype, k.device, summaries=reading is not None)
        if past is not None:
            keys, values, packed = past
            writer.append(store, keys, values, batch=packed, seen=seen)
    if moving:  # the store holds the whole past, so its keys are chosen at once
        first, sink = (x.cpu().numpy().astype(np.int64) for x in seen)
        sinks = Sinks(sink, holds, lambda position: first[:, position // BLOCK].T, len(batch.past), k.device)
    return attend(
        q, k, v, batch=batch, seen=seen, store=store, reading=reading, sinks=sinks, softmax=softmax, backend=backend
    )


def attend_alone(
    q: Tensor, k: Tensor, v: Tensor, *, seen: Visibility, holds: Sequence[str], softmax: Softmax, backend: Backend
) -> Tensor:
    """Attend to one text without a past, and keep nothing: `attend_given` for a single sequence.

    Args:
        q, k, v, seen, holds, softmax, backend: See `attend_given`.

    Returns:
        [tokens, query_heads, D].
    """
    tokens = len(k)
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32, device=k.device)
    batch = Packed(cu_seqlens, torch.zeros(1, dtype=torch.int64, device=k.device), tokens)
    return attend_given(q, k, v, batch=batch, past=None, seen=seen, holds=holds, softmax=softmax, backend=backend)
