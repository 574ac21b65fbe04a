"""Run plans that keep everything under other methods' selection: back-ends that a benchmark adds to those of moa.

What a rule reads is a share of the bytes of all keys and values, the method's own summaries included. Prefill, cache
and all other rules are moa's own: each back-end computes as the device's default one, but for `read`.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from reads_parts.selection import Selector, choose
from torch import Tensor

from moa.kernels import registry
from moa.kernels.backend import Backend, load, pick
from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.softmax import Softmax, weights
from moa.kernels.spec import Spec
from moa.kernels.store import Store, slots
from moa.plans.reading import READ_STEPS
from moa.plans.span import BLOCK

Choose = Callable[[Tensor, Tensor, Tensor, Tensor, Store], Tensor]
"""Takes scaled queries [groups, rows, heads, D], keys [groups, n, D] in the order of the text, lengths [rows], shares
of the bytes [groups] and the store; returns what rows read, bool [groups, rows, n]."""


def by_summaries(selector: Selector) -> Choose:
    """Return the choice of a selector, which every row makes anew."""

    def chosen(q: Tensor, keys: Tensor, lengths: Tensor, shares: Tensor, store: Store) -> Tensor:
        found = [choose(selector, q[g : g + 1], keys[g : g + 1], lengths, float(s))[0] for g, s in enumerate(shares)]
        return torch.cat(found)

    return chosen


def recycled(every: int) -> Choose:
    """Return the choice of Recycled Attention (arXiv 2411.05787).

    One row in `every` reads all keys. Those of greatest weight, summed over the heads of the group, are what the rows
    up to the next one read, with all keys since. So many are kept that `every` rows read the share on average.
    """

    def chosen(q: Tensor, keys: Tensor, lengths: Tensor, shares: Tensor, store: Store) -> Tensor:
        reads = torch.zeros(len(q), len(lengths), keys.shape[1], dtype=torch.bool)
        at = torch.arange(keys.shape[1])
        for g, share in enumerate(shares.tolist()):
            last, best = store.scratch.get((recycled, g), (None, None))
            for r, n in enumerate(lengths.tolist()):
                if last is None or not 0 < n - last < every:
                    mass = (q[g, r] @ keys[g, :n].T).softmax(-1).sum(0)
                    last, best = n, mass.topk(min(n, recycles(every, share, n))).indices
                    reads[g, r, :n] = True
                else:
                    reads[g, r] = (at >= last) & (at < n)
                    reads[g, r, best] = True
            store.scratch[recycled, g] = last, best
        return reads

    return chosen


def recycles(every: int, share: float, length: int) -> int:
    """Return how many keys are read again, so that of `every` rows from one that reads all, each reads the share."""
    since = every * (every - 1) // 2  # keys that have come since
    return max(0, int((share * every * length - length - since) / (every - 1)))


def reading(base: Backend, chosen: Choose) -> ModuleType:
    """Return a back-end's module that computes as `base`, but reads what `chosen` says."""

    def read(
        q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
        softmax: Softmax,
    ) -> Tensor:  # fmt: skip
        (past,), (rows,), groups = batch.past.tolist(), batch.cu_seqlens.diff().tolist(), k.shape[1]
        newest = seen.first[:, (past + rows - 1) // BLOCK]
        assert (BLOCK * newest <= seen.sink).all(), "rules keep everything"
        base.append(store, k, v, batch=batch, seen=seen)
        place = slots(torch.arange(past + rows)[None], seen.sink[:, None], store.base[0][:, None],
                      store.capacity[0][:, None])  # fmt: skip
        wide = torch.promote_types(q.dtype, torch.float32)
        keys, values = (x[place].to(wide) for x in (store.k, store.v))
        lengths = torch.arange(past, past + rows) + 1
        mine = q.to(wide).unflatten(1, (groups, -1)).transpose(0, 1)  # [groups, rows, heads, D]
        what = chosen(mine * softmax.scale, keys, lengths, reading.share / READ_STEPS, store)
        scores = softmax.capped(torch.einsum("grhd,gnd->grhn", mine, keys) * softmax.scale)
        sinks = softmax.sinks_of(groups)
        weight, _ = weights(
            scores.masked_fill(~what[:, :, None], -torch.inf), None if sinks is None else sinks[:, None]
        )
        out = torch.einsum("grhn,gnd->grhd", weight, values)
        return out.transpose(0, 1).flatten(1, 2).to(q.dtype)

    made = ModuleType("made")
    made.__dict__.update(attend=base.attend, append=base.append, decode=base.decode, read=read)
    return made


@contextmanager
def added(methods: dict[str, Choose], device: torch.device) -> Iterator[None]:
    """Add a back-end for each method, by its name, while the context lasts."""
    before, base = registry.BACKENDS, load(pick(device), device)
    for name, chosen in methods.items():
        module = f"reads_parts.made.{name}"
        sys.modules[module] = reading(base, chosen)
        registry.BACKENDS = (Spec(name, module, ("prefill", "decode", "read")), *registry.BACKENDS)
    try:
        yield
    finally:
        registry.BACKENDS = before
        for name in methods:
            del sys.modules[f"reads_parts.made.{name}"]
