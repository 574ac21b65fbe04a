"""Let the sequences of a call that have few new tokens read pages, whatever the others and the sinks need."""

import numpy as np
import torch
from torch import Tensor

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.keydiff.following import follow
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.paged import summaries
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, find_tokens
from moa.plans.reading import INSIDE, SHORT, choices, fetched
from moa.plans.span import BLOCK, Ints, keys_seen


def summarising(backend: Backend) -> Backend:
    """Return the back-end whose `append` and `decode` also write the summaries of pages that the tokens fill."""
    if backend.summarises:
        return backend

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


def parts(
    batch: Packed, seen: Visibility, reading: Reading, head_size: int, decides: bool
) -> tuple[Packed | None, Packed | None]:
    """Return the part of the batch that reads pages, and the part whose sequences have too many new tokens for it.

    Each has all sequences, with no new tokens where they are in the other part; None where it has none. A batch in
    which no row would choose pages does not read them; where the back-end `decides` that for a call of few tokens, the
    host does not ask.
    """
    if batch.max_seqlen == 1:
        return batch, None
    past, counts = batch.on_host()
    few = counts <= SHORT
    decided = decides and (few & (counts > 0)).all()
    if not decided and not _chooses(past[few], counts[few], seen, reading, head_size):
        return None, batch
    if few.all():
        return batch._replace(max_seqlen=int(counts.max()), nonempty=bool(counts.all())), None
    return _part(batch, past, counts * few), _part(batch, past, counts * ~few)


def _chooses(past: Ints, counts: Ints, seen: Visibility, reading: Reading, head_size: int) -> bool:
    """Return whether some row does not read all that it sees, of sequences with so many new tokens."""
    if not counts.any():
        return False
    at = np.concatenate([np.arange(begin, begin + count) for begin, count in zip(past, counts, strict=True)])
    first, sink, share, given = (x.cpu().numpy().astype(np.int64) for x in (*seen, *reading))
    kept = keys_seen(first[:, at // BLOCK], sink[:, None], at + 1)  # [kv_heads, tokens]
    pages = fetched(share[:, None], at + 1, kept, given[:, None], head_size)
    return bool((pages < INSIDE * choices(kept, given[:, None])).any())


def tokens_of(part: Packed, batch: Packed) -> Tensor:
    """Return which of the batch's tokens are in the part: int64, in order."""
    begin = batch.cu_seqlens[:-1] + (part.past - batch.past)
    tokens = int(part.on_host()[1].sum())
    owner, at = find_tokens(part.cu_seqlens, torch.zeros_like(part.past), tokens)
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
        follow(store, sinks, batch=batch, seen=seen, backend=backend)
        return backend.read(q, k, v, batch=batch, seen=seen, reading=reading, store=store, softmax=softmax)
    past, counts = batch.on_host()
    first = np.minimum(counts, BLOCK - past % BLOCK)  # up to 16 tokens lie in two blocks at most
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for begin, new in ((past, first), (past + first, counts - first)):
        part, here = _part(batch, begin, new), np.flatnonzero(new)
        if len(here):
            sinks.advance(store, sinks.first_at(begin), here)
            mine = tokens_of(part, batch)
            out[mine] = backend.read(
                q[mine], k[mine], v[mine], batch=part, seen=seen, reading=reading, store=store, softmax=softmax
            )
    return out


def _part(batch: Packed, past: Ints, counts: Ints) -> Packed:
    """Return the batch with only `counts` [sequences] new tokens, the first of them at positions `past`."""
    offsets, begin = (
        torch.from_numpy(x).to(batch.past.device)
        for x in (np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), past)
    )
    return Packed(offsets, begin, int(counts.max()), bool(counts.all()), (past, counts))
