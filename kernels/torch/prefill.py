"""Prefill of back-end `torch`, over torch's library attention.

It takes groups whose rules give the same table together and walks over their query blocks. A buffer holds their
keys in the order of the text; before each chunk of rows the sink's keys are written just below the window's first
block, over keys that no later row needs, so that every chunk reads one contiguous slice [sink | window | own]. The rows
of a fresh text that see all of it are one causal call.

`moa.kernels.call` documents the operations and their arguments.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moa.kernels.call import Packed, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, find_tokens, slots
from moa.kernels.torch import tiled
from moa.kernels.torch.decode import threads
from moa.plans.span import BLOCK

HALF_CHUNK = 3
"""Blocks in a chunk of rows in half precision: library attention takes tiles of 64 rows, not 32, from 192 rows on."""


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store | None = None, softmax: Softmax
) -> Tensor:
    """Return the attention of the new tokens over the store's past and themselves; write nothing."""
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    by_group, out_by_group = (x.unflatten(1, (k.shape[1], -1)) for x in (q, out))
    offsets = batch.cu_seqlens.tolist()
    for s, past in enumerate(batch.past.tolist()):
        new = slice(offsets[s], offsets[s + 1])
        count = new.stop - new.start
        if count == 0:
            continue
        for groups, edges, sinks in _alike(seen, past // BLOCK, (past + count - 1) // BLOCK):
            keys, values = (x[new, groups].transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in (k, v))
            if store is not None and past:
                at = torch.arange(past - BLOCK * (edges[0] - sinks), device=q.device)
                at = torch.where(at < BLOCK * sinks, at, at + BLOCK * (edges[0] - sinks))
                place = slots(at, *(x[groups, None] for x in (seen.sink, store.base[s], store.capacity[s])))
                keys, values = torch.cat([store.k[place], keys], 1), torch.cat([store.v[place], values], 1)
            rows, result = (x[new, groups].flatten(1, 2).transpose(0, 1) for x in (by_group, out_by_group))
            _attend_alike(rows, keys, values, result, past, edges, sinks, softmax.part(groups, k.shape[1]))
            if not isinstance(groups, slice):  # then `result` is no view
                out_by_group[new, groups] = result.transpose(0, 1).unflatten(1, (len(keys), -1))
    return out


def append(store: Store, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility) -> None:
    """Write the new tokens into their slabs: those of the sink, and the newest that the ring has room for."""
    sink, past = seen.sink, batch.past
    sequence, position = find_tokens(batch.cu_seqlens, past, k.shape[0])
    block, end = position // BLOCK, (past + batch.cu_seqlens.diff() - 1) // BLOCK
    ring = store.capacity // BLOCK - sink // BLOCK
    kept = (block[:, None] < sink // BLOCK) | (block[:, None] > (end[:, None] - ring)[sequence])
    place = slots(position[:, None], sink, store.base[sequence], store.capacity[sequence])[kept]
    store.k[place] = k[kept]
    store.v[place] = v[kept]


def _alike(seen: Visibility, begin: int, end: int) -> list[tuple[slice | list[int], tuple[int, ...], int]]:
    """Return groups that see the same in query blocks `begin` to `end`: (groups, first block of each, sink blocks)."""
    sets: dict[tuple[tuple[int, ...], int], list[int]] = {}
    sinks = (seen.sink // BLOCK).tolist()
    for group, edges in enumerate(seen.first[:, begin : end + 1].tolist()):
        sees_all = edges[-1] <= sinks[group]
        key = ((0,) * len(edges), 0) if sees_all else (tuple(edges), sinks[group])
        sets.setdefault(key, []).append(group)
    return [(_index(groups), *key) for key, groups in sets.items()]


def _index(groups: list[int]) -> slice | list[int]:
    """Return the groups as a slice where they are adjacent, so that indexing gives a view."""
    adjacent = groups[-1] - groups[0] == len(groups) - 1
    return slice(groups[0], groups[-1] + 1) if adjacent else groups


def _attend_alike(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, past: int, edges: tuple[int, ...], sinks: int, softmax: Softmax
) -> None:
    """Write the attention of groups that see the same to `out`.

    A chunk of rows is one block: then only half the diagonal block is computed in vain. It is more blocks where the
    heads alone would not give every thread two tiles of 32 rows.

    Args:
        q: [query heads, rows, D], at positions past, past + 1, ….
        k: [KV heads, keys, D], contiguous: the sink's keys, then those from block edges[0] on; overwritten.
        v: The values, like the keys.
        out: Like q; filled.
        past: Position of the first row.
        edges: First block kept besides the sink, per query block.
        sinks: Blocks of the sink.
        softmax: How scores become weights.
    """
    heads, rows, _ = q.shape
    keys = k.shape[1]

    def some(begin: int, end: int, lead: int, bias: Tensor | None) -> None:
        stop = keys - rows + end
        mine, theirs, values = q[:, begin:end], k[:, lead:stop], v[:, lead:stop]
        if softmax.is_plain:
            out[:, begin:end] = scaled_dot_product_attention(
                mine[None], theirs[None], values[None], bias,
                is_causal=bias is None, scale=softmax.scale, enable_gqa=heads != len(k),
            )[0]  # fmt: skip
        else:
            by_group = mine.unflatten(0, (len(k), -1))
            out[:, begin:end] = tiled.attend(by_group, theirs, values, bias, softmax).flatten(0, 1)

    done = 0
    if past == 0:
        done = min(rows, BLOCK * sum(edge <= sinks for edge in edges))
        if done:
            some(0, done, 0, None)
        if done == rows:
            return
    chunk = max(1 if q.dtype.itemsize > 2 else HALF_CHUNK, -(-threads() // heads))
    causal = torch.zeros(BLOCK * chunk, keys + BLOCK * chunk, dtype=q.dtype, device=q.device)
    causal[:, keys:] = torch.full_like(causal[:, keys:], -torch.inf).triu(1)
    sink_keys, sink_values = k[:, : BLOCK * sinks].clone(), v[:, : BLOCK * sinks].clone()
    while done < rows:
        block = (past + done) // BLOCK
        edge, *later = edges[block - past // BLOCK :][:chunk]
        end = min(rows, BLOCK * (block + chunk) - past)
        lead = BLOCK * (edge - edges[0])
        if lead:
            k[:, lead : lead + BLOCK * sinks], v[:, lead : lead + BLOCK * sinks] = sink_keys, sink_values
        bias = causal[: end - done, end - done + rows - end + lead : keys + end - done]
        some(done, end, lead, _hide(bias, later, edge, sinks, BLOCK * (block + 1) - past - done))
        done = end


def _hide(bias: Tensor, later: list[int], edge: int, sinks: int, row: int) -> Tensor:
    """Return `bias` that also hides, from the chunk's later blocks (rows from `row` on), blocks before their first."""
    if later and later[-1] > edge:
        bias = bias.clone()
        for i, own in enumerate(later):
            bias[row + BLOCK * i : row + BLOCK * (i + 1), BLOCK * sinks : BLOCK * (sinks + own - edge)] = -torch.inf
    return bias
