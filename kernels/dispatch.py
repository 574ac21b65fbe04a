"""The one place that decides how an attention call is computed: as a decode step, or as one of two prefills."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff.prefill import prefill
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.sink_contents import SCORES
from moa.kernels.store import Store, allocate
from moa.plans.span import BLOCK


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None, scale: float,
    backend: Backend, sinks: Sinks | None = None, grown: Callable[[], Store] | None = None,
) -> Tensor:  # fmt: skip
    """Attend to the new tokens and, if they are to be kept, store them.

    - As a decode step (`Backend.decode`) where there is a past and every sequence has new tokens to be kept: up to 64
      of them, or one where keys move into sinks.
    - Otherwise by `moa.kernels.keydiff.prefill` where keys move into sinks.
    - Otherwise as a prefill: `Backend.attend`, then `Backend.append`.

    Args:
        q, k, v, batch, seen, store, scale: See `moa.kernels.call.Attend`.
        backend: What computes.
        sinks: What the store's sinks hold, where keys move into them; None where they hold the first keys.
        grown: Returns the store with room for the new tokens, which are kept there. Where they are not kept it is None,
            and a store with `sinks` has the room already.

    Returns:
        [tokens, query_heads, D].
    """
    few = batch.nonempty and batch.max_seqlen <= (BLOCK if sinks is None else 1)
    if grown is not None and store is not None and few:
        store = grown()
        if sinks is not None:
            sinks.follow(store, batch)
        return backend.decode(q, k, v, batch=batch, seen=seen, store=store, scale=scale)
    if sinks is not None:
        store = store if grown is None else grown()
        assert store is not None
        return prefill(q, k, v, batch=batch, seen=seen, store=store, sinks=sinks, scale=scale, backend=backend)
    out = backend.attend(q, k, v, batch=batch, seen=seen, store=store, scale=scale)
    if grown is not None:
        backend.append(grown(), k, v, batch=batch, seen=seen)
    return out


def attend_alone(
    q: Tensor, k: Tensor, v: Tensor, *, seen: Visibility, holds: Sequence[str], scale: float, backend: Backend
) -> Tensor:
    """Return the attention of one text to itself; nothing is stored.

    Args:
        q, k, v, seen, scale: See `moa.kernels.call.Attend`.
        holds: Which keys the sinks hold, names in `moa.kernels.sink_contents.SCORES`: one per KV head.
        backend: What computes.

    Returns:
        [tokens, query_heads, D].
    """
    tokens, groups, size = k.shape
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32, device=k.device)
    batch = Packed(cu_seqlens, torch.zeros(1, dtype=torch.int64, device=k.device), tokens)
    store, sinks = None, None
    if any(SCORES[name] is not None for name in holds):
        first, sink = (x.cpu().numpy().astype(np.int64) for x in seen)
        store = allocate(np.full((1, groups), -(-tokens // BLOCK) * BLOCK), size, k.dtype, k.device)
        sinks = Sinks(sink, holds, lambda position: first[:, position // BLOCK].T, 1, k.device)
    return attend(q, k, v, batch=batch, seen=seen, store=store, sinks=sinks, scale=scale, backend=backend)
