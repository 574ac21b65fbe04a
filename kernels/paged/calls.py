"""Let the sequences of a call that have few new tokens read pages, whatever the others and the sinks need."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.paged import summaries
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, find_tokens
from moa.plans.reading import INSIDE, SHORT, choices, fetched
from moa.plans.span import BLOCK, keys_seen


def summarising(backend: Backend) -> Backend:
    """Return the back-end whose `append` and `decode` also write the summaries of pages that the tokens fill."""

    def append(store: Store, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility) -> None:
        backend.append(store, k, v, batch=batch, seen=seen)
        summaries.update(store, batch=batch, seen=seen)

    def decode(
        q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
    ) -> Tensor:
        out = backend.decode(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
        summaries.update(store, batch=batch, seen=seen)
        return out

    return backend._replace(append=append, decode=decode, prefill_keydiff=None)


def parts(batch: Packed, seen: Visibility, reading: Reading, head_size: int) -> tuple[Packed | None, Packed | None]:
    """Return the part of the batch that reads pages, and the part whose sequences have too many new tokens for it.

    Each has all sequences, with no new tokens where they are in the other part; None where it has none. A batch in
    which no row would choose pages does not read them.
    """
    if batch.max_seqlen == 1:
        return batch, None
    counts = batch.cu_seqlens.diff()
    few = counts <= SHORT
    short, long = _part(batch, counts * few), _part(batch, counts * ~few)
    if not _chooses(short, seen, reading, head_size):
        return None, batch
    return short, long if long.max_seqlen else None


def _chooses(batch: Packed, seen: Visibility, reading: Reading, head_size: int) -> bool:
    """Return whether some row does not read all that it sees."""
    _, position = find_tokens(batch.cu_seqlens, batch.past, int(batch.cu_seqlens[-1]))
    at = position.cpu().numpy()
    first, sink, share, given = (x.cpu().numpy().astype(np.int64) for x in (*seen, *reading))
    kept = keys_seen(first[:, at // BLOCK], sink[:, None], at + 1)  # [kv_heads, tokens]
    pages = fetched(share[:, None], at + 1, kept, given[:, None], head_size)
    return bool((pages < INSIDE * choices(kept, given[:, None])).any())


def tokens_of(part: Packed, batch: Packed) -> Tensor:
    """Return which of the batch's tokens are in the part: int64, in order."""
    begin = batch.cu_seqlens[:-1] + (part.past - batch.past)
    owner, at = find_tokens(part.cu_seqlens, torch.zeros_like(part.past), int(part.cu_seqlens[-1]))
    return begin[owner] + at


def read(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
    softmax: Softmax, sinks: Sinks | None, backend: Backend,
) -> Tensor:  # fmt: skip
    """Run the back-end's `read` where keys may move into sinks: once for each block that new tokens lie in.

    Args:
        q, k, v, batch, seen, reading, store, softmax: See `moa.kernels.call.Read`.
        sinks: What the store's sinks hold, where keys move into them; None where they hold the first keys.
        backend: What computes.

    Returns:
        [tokens, query_heads, D].
    """
    assert backend.read is not None
    if sinks is None:
        return backend.read(q, k, v, batch=batch, seen=seen, reading=reading, store=store, softmax=softmax)
    if batch.nonempty and batch.max_seqlen == 1:
        sinks.follow(store, batch, seen)
        return backend.read(q, k, v, batch=batch, seen=seen, reading=reading, store=store, softmax=softmax)
    counts = batch.cu_seqlens.diff()
    first = torch.minimum(counts, BLOCK - batch.past % BLOCK)  # up to 16 tokens lie in two blocks at most
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for part in (_part(batch, first), _part(batch._replace(past=batch.past + first), counts - first)):
        here = part.cu_seqlens.diff().cpu().numpy().nonzero()[0]
        if len(here):
            sinks.advance(store, sinks.first_at(part.past.cpu().numpy()), here)
            mine = tokens_of(part, batch)
            out[mine] = backend.read(
                q[mine], k[mine], v[mine], batch=part, seen=seen, reading=reading, store=store, softmax=softmax
            )
    return out


def _part(batch: Packed, counts: Tensor) -> Packed:
    """Return the batch with only `counts` [sequences] new tokens."""
    offsets = pad(counts.cumsum(0), (1, 0)).to(torch.int32)
    return batch._replace(cu_seqlens=offsets, max_seqlen=int(counts.max()), nonempty=bool(counts.all()), lengths=None)
