"""The oracle: plain PyTorch, one sequence and one group at a time, an explicit mask; float64-capable, slow.

`moa.kernels.call` documents the operations, their arguments and what a row sees.
"""

import torch
from torch import Tensor

from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.paged import summaries
from moa.kernels.paged.selection import keys_read
from moa.kernels.softmax import Softmax, weights
from moa.kernels.store import Store, slots
from moa.plans.span import BLOCK


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None = None, softmax: Softmax
) -> Tensor:
    """Return the attention of the new tokens over the store's past and themselves; a row that sees no key is 0."""
    return _attend(q, k, v, batch, seen, None, store, softmax)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, batch: Packed, seen: Visibility, reading: Reading | None, store: Store | None,
    softmax: Softmax,
) -> Tensor:  # fmt: skip
    out = torch.zeros_like(q)
    groups, (first, sink), sinks = k.shape[1], seen, softmax.sinks_of(k.shape[1])
    heads = q.shape[1] // groups
    wide = torch.promote_types(q.dtype, torch.float32)
    for s, past in enumerate(batch.past.tolist()):
        new = slice(int(batch.cu_seqlens[s]), int(batch.cu_seqlens[s + 1]))
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
            visible = (at <= rows[:, None]) & ((at < sink[g]) | (at // BLOCK >= edge[:, None]))
            mine = slice(g * heads, (g + 1) * heads)
            if reading is not None:
                assert store is not None
                assert store.summaries is not None
                for row, sees, n in zip(q[new, mine].to(wide) * softmax.scale, visible, rows + 1, strict=True):
                    kept = at[sees]
                    block = slots(kept[::BLOCK], sink[g], store.base[s, g], store.capacity[s, g]) // BLOCK
                    share, given = (int(x[g]) for x in reading)
                    sees[sees.clone()] = keys_read(
                        row, store.summaries[block], share=share, given=given, length=int(n), kept=len(kept)
                    )
            scores = softmax.capped(softmax.scale * torch.einsum("rhd,kd->hrk", q[new, mine].to(wide), keys.to(wide)))
            weight, _ = weights(scores.masked_fill(~visible, -torch.inf), sinks if sinks is None else sinks[g, :, None])
            weight = weight.masked_fill(~visible, 0)  # NaN in a row that sees no key
            out[new, mine] = torch.einsum("hrk,kd->rhd", weight, values.to(wide)).to(q.dtype)
    return out


def append(store: Store, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility) -> None:
    """Write the new tokens into their slabs: those of the sink, and the newest that the ring has room for."""
    for s, past in enumerate(batch.past.tolist()):
        new = slice(int(batch.cu_seqlens[s]), int(batch.cu_seqlens[s + 1]))
        rows = torch.arange(past, past + new.stop - new.start, device=k.device)
        for g, sink in enumerate(seen.sink if len(rows) else ()):
            ring = store.capacity[s, g] // BLOCK - sink // BLOCK
            kept = (rows < sink) | (rows // BLOCK > rows[-1] // BLOCK - ring)
            place = slots(rows[kept], sink, store.base[s, g], store.capacity[s, g])
            store.k[place], store.v[place] = k[new, g][kept], v[new, g][kept]


def decode(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
) -> Tensor:
    """Run `attend`, then `append`."""
    out = attend(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
    append(store, k, v, batch=batch, seen=seen)
    return out


def read(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
    softmax: Softmax,
) -> Tensor:  # fmt: skip
    """Run `attend` on the keys that `keys_read` chooses, then `append`, then write the summaries of full pages."""
    out = _attend(q, k, v, batch, seen, reading, store, softmax)
    append(store, k, v, batch=batch, seen=seen)
    summaries.update(store, batch=batch, seen=seen)
    return out
