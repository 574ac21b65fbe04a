"""The oracle: plain PyTorch, one sequence and one group at a time, an explicit mask; float64-capable, slow.

Every back-end has these three functions with these arguments:

    q        [tokens, query_heads, D]    new tokens of all sequences, packed, no padding
    k, v     [tokens, kv_heads, D]       of the same tokens; query head h uses KV head h // group size
    first    int32 [kv_heads, blocks]    first block kept besides the sink, per query block (`moa.plans.span`)
    sink     int32 [kv_heads]            tokens, multiples of 64
    store    the past of every sequence, or None when there is none
    cu_seqlens  int32 [sequences + 1]    packed offsets of each sequence's new tokens
    lengths  int64 [sequences]           tokens each sequence had before: the position of its first new token
    scale    factor on q·k

A row at position p sees key j exactly when j <= p and (j < sink or j//64 >= first[p//64]).
"""

import torch
from torch import Tensor

from moa.kernels.store import Store, slots
from moa.plans.span import BLOCK


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor,
    sink: Tensor,
    store: Store | None = None,
    cu_seqlens: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Attention of the new tokens over the store's past and themselves; writes nothing.

    Returns:
        [tokens, query_heads, D] in q's dtype; a row that sees no key is 0.
    """
    out = torch.zeros_like(q)
    groups = k.shape[1]
    heads = q.shape[1] // groups
    wide = torch.promote_types(q.dtype, torch.float32)
    for s, past in enumerate(lengths.tolist()):
        new = slice(int(cu_seqlens[s]), int(cu_seqlens[s + 1]))
        rows = torch.arange(past, past + new.stop - new.start, device=q.device)
        if not len(rows):
            continue
        for g in range(groups):
            edge = first[g, rows // BLOCK]
            old = torch.arange(past, device=q.device)
            old = old[(old < sink[g]) | (old // BLOCK >= edge[0])]  # what the plan has dropped is never read
            keys, values = k[new, g], v[new, g]
            if store is not None:
                place = slots(old, sink[g], store.base[s, g], store.capacity[s, g])
                keys, values = torch.cat([store.k[place], keys]), torch.cat([store.v[place], values])
            at = torch.cat([old, rows])
            seen = (at <= rows[:, None]) & ((at < sink[g]) | (at // BLOCK >= edge[:, None]))
            mine = slice(g * heads, (g + 1) * heads)
            scores = scale * torch.einsum("rhd,kd->hrk", q[new, mine].to(wide), keys.to(wide))
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
            out[new, mine] = torch.einsum("hrk,kd->rhd", weights, values.to(wide)).to(q.dtype)
    return out


def append(store: Store, k: Tensor, v: Tensor, *, sink: Tensor, cu_seqlens: Tensor, lengths: Tensor) -> None:
    """Write the new tokens into their slabs: the sink's, and the newest that the ring has room for."""
    for s, past in enumerate(lengths.tolist()):
        new = slice(int(cu_seqlens[s]), int(cu_seqlens[s + 1]))
        rows = torch.arange(past, past + new.stop - new.start, device=k.device)
        for g in range(k.shape[1] if len(rows) else 0):
            ring = store.capacity[s, g] // BLOCK - sink[g] // BLOCK
            kept = (rows < sink[g]) | (rows // BLOCK > rows[-1] // BLOCK - ring)
            place = slots(rows[kept], sink[g], store.base[s, g], store.capacity[s, g])
            store.k[place], store.v[place] = k[new, g][kept], v[new, g][kept]


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor,
    sink: Tensor,
    store: Store,
    cu_seqlens: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """The decode form, for 1 to 64 new tokens of every sequence: `attend` and `append` in one call."""
    out = attend(q, k, v, first=first, sink=sink, store=store, cu_seqlens=cu_seqlens, lengths=lengths, scale=scale)
    append(store, k, v, sink=sink, cu_seqlens=cu_seqlens, lengths=lengths)
    return out
