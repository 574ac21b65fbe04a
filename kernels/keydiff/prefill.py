"""Prefill where sinks hold other keys than the first.

Such a sink holds other keys in each block. They follow from the keys alone, so they are selected first, for all query
blocks. Then library attention computes query blocks of equal window together, each with its own copy of the keys that
it sees: [sink | window | own block]. This serves every back-end that has no prefill of its own for sinks of these keys
(`Backend.prefill_keydiff`); the back-end itself attends in all other groups.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff.selection import kept, scores
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, part, slots
from moa.kernels.torch import tiled
from moa.plans.span import BLOCK, Ints

ROOM = 1 << 14
"""The most keys per group that are copied at once; one query block's keys are copied even where they are more."""


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
    if backend.prefill_keydiff is not None and sinks.are_scored_by(scores):
        return backend.prefill_keydiff(q, k, v, batch=batch, seen=seen, store=store, sinks=sinks, softmax=softmax)
    edges, (begin, counts) = sinks.first_at, batch.on_host()
    here, last = np.flatnonzero(counts), begin + np.maximum(counts, 1) - 1
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    rows, results = (x.unflatten(1, (k.shape[1], -1)) for x in (q, out))
    static = torch.from_numpy(np.setdiff1d(np.arange(k.shape[1]), sinks.groups)).to(k.device)
    if len(static):
        results[:, static] = backend.attend(
            rows[:, static].flatten(1, 2), k[:, static], v[:, static], batch=batch,
            seen=Visibility(seen.first[static], seen.sink[static]), store=part(store, static),
            softmax=softmax.part(static, k.shape[1]),
        ).unflatten(1, (len(static), -1))  # fmt: skip
    offsets, pending = np.concatenate([[0], np.cumsum(counts)]).tolist(), []
    for s in here.tolist():
        new = slice(offsets[s], offsets[s + 1])
        wanted = edges(BLOCK * np.arange(begin[s] // BLOCK, last[s] // BLOCK + 1))
        for groups in _alike(wanted, sinks):
            text = _Text(k[new, groups], v[new, groups], int(begin[s]), store, sinks, s, groups)
            theirs = softmax.part(groups, k.shape[1])
            results[new, groups] = text.attend(rows[new, groups], wanted[:, groups[0]].tolist(), theirs)
            pending.append((text, int(wanted[-1, groups[0]])))
    backend.append(store, k, v, batch=batch, seen=seen)
    for text, edge in pending:
        text.leave(store, sinks, edge)
    sinks.advance(store, edges(last), here)
    return out


class _Text:
    """Keys and values of one sequence, in groups that see the same keys: the sink's slots, then all from a block on."""

    def __init__(
        self, k: Tensor, v: Tensor, past: int, store: Store, sinks: Sinks, sequence: int, groups: list[int]
    ) -> None:
        """Copy the keys and values that the store holds, and those of the new tokens [tokens, groups, D]."""
        self.sequence, self.groups, self.past, self.new = sequence, groups, past, len(k)
        self.sink = sinks.sink(groups[0])
        self.begin = int(sinks.folded[sequence, groups[0]])
        """The first block that follows the sink's slots."""
        at = torch.arange(min(past, self.sink), device=k.device)
        later = torch.arange(BLOCK * self.begin, max(past, BLOCK * self.begin), device=k.device)
        at = torch.cat([at, later])
        if past:
            size = torch.full((len(groups), 1), self.sink, device=k.device)
            place = slots(at, size, store.base[sequence, groups, None], store.capacity[sequence, groups, None])
            k = torch.cat([store.k[place], k.transpose(0, 1)], 1)
            v = torch.cat([store.v[place], v.transpose(0, 1)], 1)
        else:
            k, v = k.transpose(0, 1), v.transpose(0, 1)
        self.k, self.v = k, v  # [groups, sink + keys, D]
        self.score, self.position = sinks.known(self.k, sequence, groups)
        self._sink_keys = {self.begin: torch.arange(self.sink, device=k.device).expand(len(groups), -1)}

    def sink_keys(self, edge: int) -> Tensor:
        """Return the indices of the sink's keys when `edge` is the first block besides it: int64 [groups, sink]."""
        last = max(self._sink_keys)
        while last < edge:
            start = self.sink + BLOCK * (last - self.begin)
            left = torch.arange(start, start + BLOCK, device=self.k.device)
            self._sink_keys[last + 1] = kept(self.score, self._sink_keys[last], left)
            last += 1
        return self._sink_keys[edge]

    def attend(self, rows: Tensor, wanted: list[int], softmax: Softmax) -> Tensor:
        """Return the attention of rows [tokens, groups, heads, D]; `wanted` is each query block's first block."""
        lead, heads = self.past % BLOCK, rows.shape[2]
        tail = -(lead + self.new) % BLOCK
        padded = pad(rows, (0, 0, 0, 0, 0, 0, lead, tail)).unflatten(0, (-1, BLOCK))
        padded = padded.permute(2, 0, 3, 1, 4).flatten(2, 3)  # [groups, blocks, heads * 64, D]
        out = torch.empty_like(padded)
        for blocks, keys in self._batches(wanted):
            k, v = (torch.stack([x[g, keys[g]] for g in range(len(x))]) for x in (self.k, self.v))
            bias = torch.zeros(BLOCK, k.shape[2], dtype=k.dtype, device=k.device)
            bias[:, -BLOCK:] = torch.full((BLOCK, BLOCK), -torch.inf, dtype=k.dtype, device=k.device).triu(1)
            queries = padded[:, blocks].contiguous()
            if softmax.is_plain:
                attended = scaled_dot_product_attention(queries, k, v, bias.repeat(heads, 1), scale=softmax.scale)
            else:  # each query block has keys of its own, as a KV head has
                group = torch.arange(len(k), device=k.device).repeat_interleave(k.shape[1])
                apart = queries.flatten(0, 1).unflatten(1, (heads, -1)), k.flatten(0, 1), v.flatten(0, 1)
                attended = tiled.attend(*apart, bias, softmax.part(group, len(k))).view(queries.shape)
            out[:, blocks] = attended
        by_token: Tensor = out.unflatten(2, (heads, BLOCK)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return by_token[lead : lead + self.new]

    def _batches(self, wanted: list[int]) -> Iterator[tuple[slice, Tensor]]:
        """Yield query blocks that see equally many keys, and these keys' indices: int64 [groups, blocks, keys]."""
        block = self.past // BLOCK
        widths = [block + i - edge for i, edge in enumerate(wanted)]
        done = 0
        while done < len(wanted):
            keys = self.sink + BLOCK * (widths[done] + 1)
            at_once = max(1, ROOM // max(1, keys))
            end = next((i for i in range(done, len(wanted)) if widths[i] != widths[done]), len(wanted))
            here = range(done, min(end, done + at_once))
            own = torch.tensor([BLOCK * (wanted[i] - self.begin) for i in here], device=self.k.device)
            span = torch.arange(max(0, keys - self.sink), device=self.k.device)
            window = self.sink + own[:, None] + span
            sink = torch.stack([self.sink_keys(wanted[i]) for i in here], 1)  # [groups, blocks, sink]
            index = torch.cat([sink, window.expand(len(self.groups), -1, -1)], 2)
            # A query block within the sink sees only the sink's first keys; causality hides later ones.
            yield slice(here.start, here.stop), index[:, :, :keys].clamp(max=self.k.shape[1] - 1)
            done = here.stop

    def leave(self, store: Store, sinks: Sinks, edge: int) -> None:
        """Write the sinks' keys to the store as they are before the last block leaves, so that it can be taken back."""
        if edge > self.begin:
            at = self.sink_keys(edge - 1)
            k, v = (x.gather(1, at[..., None].expand(-1, -1, x.shape[-1])) for x in (self.k, self.v))
            score, position = self.score.gather(1, at), self.position.gather(1, at)
            sinks.put(store, self.sequence, self.groups, edge - 1, k, v, score, position)


def _alike(wanted: Ints, sinks: Sinks) -> list[list[int]]:
    """Return the groups of `sinks` in lists; the groups of a list see the same keys."""
    sets: dict[tuple[int | str, ...], list[int]] = {}
    for group in sinks.groups.tolist():
        sets.setdefault((sinks.sink(group), sinks.holds[group], *wanted[:, group].tolist()), []).append(group)
    return list(sets.values())
