"""Steps of back-end `torch` that read only some pages: each group's rows at once, of all sequences.

Rows choose among the blocks that they see, in the order of the text; shorter lists are padded. The host reads `past`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.paged import summaries
from moa.kernels.paged.rows import best, scores
from moa.kernels.paged.summaries import QUADS
from moa.kernels.softmax import Softmax, weights
from moa.kernels.store import Store, find_tokens, slots
from moa.kernels.torch.decode import decode
from moa.kernels.torch.prefill import append
from moa.plans.reading import COARSE, FINE, INSIDE, choices, fetched, opened
from moa.plans.span import BLOCK


def read(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
    softmax: Softmax,
) -> Tensor:  # fmt: skip
    """Append the new tokens, summarise the pages that they fill, and attend to the pages that each row chooses."""
    groups, size = k.shape[1:]
    sequence, position = find_tokens(batch.cu_seqlens, batch.past, len(k))
    edge = seen.first[:, position // BLOCK].T
    kept = position[:, None] + 1 - (BLOCK * edge - seen.sink).clamp(min=0)
    share, given = (x.cpu().numpy().astype(np.int64) for x in reading)
    sees = kept.cpu().numpy()
    among = choices(sees, given)
    count = fetched(share, position.cpu().numpy()[:, None] + 1, sees, given, size)
    if batch.nonempty and (count == INSIDE * among).all():
        out = decode(q, k, v, batch=batch, seen=seen, store=store, softmax=softmax)
        summaries.update(store, batch=batch, seen=seen)
        return out
    append(store, k, v, batch=batch, seen=seen)
    summaries.update(store, batch=batch, seen=seen)
    out, sinks = torch.empty_like(q, memory_format=torch.contiguous_format), softmax.sinks_of(groups)
    if not len(q):
        return out
    queries, result = (x.unflatten(1, (groups, -1)) for x in (q.to(torch.promote_types(q.dtype, torch.float32)), out))
    for g in range(groups):
        sink = seen.sink[g]
        index = BLOCK * torch.arange(-(-int(sees[:, g].max()) // BLOCK), device=q.device)
        index = torch.minimum(index, kept[:, g, None] - 1)  # blocks that only longer lists have repeat the last one
        at = torch.where(index < sink, index, index + (BLOCK * edge[:, g, None] - sink).clamp(min=0))
        places = slots(at, sink, store.base[sequence, g, None], store.capacity[sequence, g, None]) // BLOCK
        counts = (torch.from_numpy(x[:, g]).to(q.device) for x in (among, count))
        rows = _Rows(queries[:, g], places, kept[:, g], *counts)
        pages, real = _pages(rows, store, int(given[g]), softmax.scale)
        mine = softmax._replace(sink_logits=None if sinks is None else sinks[g])
        result[:, g] = _attend(rows, pages, real, store, mine).to(q.dtype)
    return out


class _Rows(NamedTuple):
    """The rows of one group."""

    q: Tensor
    """[rows, heads, D], in float32 at least."""
    places: Tensor
    """int64 [rows, blocks]: the store's blocks that they see, in the order of the text."""
    kept: Tensor
    """int64 [rows]: keys that they see."""
    among: Tensor
    """int64 [rows]: coarse pages among which they choose."""
    fetch: Tensor
    """int64 [rows]: fine pages of those that they fetch."""


def _pages(rows: _Rows, store: Store, given: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return the fine pages that rows read, by their place among the keys seen, and which are real: [rows, most]."""
    assert store.summaries is not None
    quads = store.summaries.view(len(store.summaries), QUADS, -1)
    q, first = rows.q * scale, given // COARSE
    end = first + rows.among[:, None]
    everything = rows.fetch == INSIDE * rows.among
    wanted = torch.from_numpy(opened(rows.fetch.cpu().numpy(), rows.among.cpu().numpy())).to(q.device)
    wanted = wanted.masked_fill(everything, 0)

    page = torch.arange(INSIDE * rows.places.shape[1], device=q.device)
    coarse = best(scores(q, quads[rows.places, 0]), (page >= first) & (page < end), wanted)
    open_, real = _listed(coarse)
    fine = quads[rows.places.gather(1, open_ // INSIDE), 1 + open_ % INSIDE]
    count = rows.fetch.masked_fill(everything, 0)
    chosen = best(scores(q, fine), real.repeat_interleave(INSIDE, 1), count)
    inside = INSIDE * open_[..., None] + torch.arange(INSIDE, device=q.device)

    page = torch.arange(INSIDE * len(page), device=q.device)
    read = (page < INSIDE * first) | (page >= INSIDE * end) | everything[:, None]
    read &= FINE * page < rows.kept[:, None]
    read = read.int().scatter_add_(1, inside.flatten(1), chosen.int()) > 0
    return _listed(read)


def _listed(which: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of what is true in each row [rows, n], in rising order, and which of them are real."""
    count = which.sum(1, keepdim=True)
    most = max(int(count.max()), 1)
    found = which.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
    return found, torch.arange(most, device=which.device) < count


def _attend(rows: _Rows, pages: Tensor, real: Tensor, store: Store, softmax: Softmax) -> Tensor:
    """Return the attention [rows, heads, D] to the keys of pages [rows, most]."""
    key = (FINE * pages[..., None] + torch.arange(FINE, device=pages.device)).flatten(1)
    hidden = (key >= rows.kept[:, None]) | ~real.repeat_interleave(FINE, 1)
    key = key.masked_fill(hidden, 0)
    place = BLOCK * rows.places.gather(1, key // BLOCK) + key % BLOCK
    keys, values = (x[place].to(rows.q.dtype) for x in (store.k, store.v))
    scores = softmax.capped(rows.q @ keys.mT * softmax.scale).masked_fill(hidden[:, None], -torch.inf)
    weight, _ = weights(scores, softmax.sink_logits)
    return weight @ values
