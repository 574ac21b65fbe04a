"""Prefill of back-end `torch`, over torch's library attention.

It takes groups whose rules give the same table together and walks over their query blocks. A buffer holds their
keys in the order of the text; before each chunk of rows the sink's keys are written just below the window's first
block, over keys that no later row needs, so that every chunk reads one contiguous slice [sink | window | own]. The rows
of a fresh text that see all of it are one causal call.

`moa.kernels.call` documents the operations and their arguments.
"""

from collections.abc import Sequence

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
            held = torch.arange(min(BLOCK * sinks, keys.shape[1]), device=q.device)[None, None]
            attend_alike(
                by_group[new, groups], keys, values, out_by_group[new], groups, past, edges, edges[0], held,
                softmax.part(groups, k.shape[1]),
            )  # fmt: skip
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
    return [(index(groups), *key) for key, groups in sets.items()]


def index(groups: list[int]) -> slice | list[int]:
    """Return the groups as a slice where they are adjacent, so that indexing gives a view."""
    adjacent = groups[-1] - groups[0] == len(groups) - 1
    return slice(groups[0], groups[-1] + 1) if adjacent else groups


def attend_alike(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, groups: slice | list[int], past: int, edges: Sequence[int],
    begin: int, held: Tensor, softmax: Softmax,
) -> None:  # fmt: skip
    """Write the attention of groups that see the same blocks to `out`.

    A chunk of rows is one block: then only half the diagonal block is computed in vain. It is more blocks where the
    heads alone would not give every thread two tiles of 32 rows.

    Args:
        q: [rows, KV heads, heads of a group, D], at positions past, past + 1, ….
        k: [KV heads, keys, D], contiguous: the sink's keys, then those from block `begin` on; overwritten.
        v: The values, like the keys.
        out: [rows, all KV heads, heads of a group, D]; filled at `groups`.
        groups: Which KV heads these are.
        past: Position of the first row.
        edges: First block kept besides the sink, per query block.
        begin: At most edges[0].
        held: Indices of the keys that the sink holds when blocks before begin, begin + 1, … have left the window,
            int64 [states, 1 or KV heads, slots]; one state where they stay the same.
        softmax: How scores become weights.
    """
    rows, _, heads, _ = q.shape
    keys, size = k.shape[1], held.shape[2]

    def some(start: int, end: int, lead: int, bias: Tensor | None) -> None:
        stop = keys - rows + end
        mine, theirs, values = q[start:end].permute(1, 2, 0, 3), k[:, lead:stop], v[:, lead:stop]
        if softmax.is_plain:
            hidden = bias  # library attention is slow with a mask of three dimensions
            if bias is not None:
                hidden = (bias if len(bias) == 1 else bias.repeat_interleave(heads, 0))[None]
            found = scaled_dot_product_attention(
                mine.flatten(0, 1)[None], theirs[None], values[None], hidden,
                is_causal=bias is None, scale=softmax.scale, enable_gqa=heads > 1,
            )[0].unflatten(0, (len(k), heads))  # fmt: skip
        else:
            found = tiled.attend(mine, theirs, values, bias, softmax)
        out[start:end, groups] = found.permute(2, 0, 1, 3)

    def state(edge: int) -> int:
        return min(edge - begin, len(held) - 1)

    done = 0
    if past == 0:
        done = min(rows, BLOCK * sum(edge <= begin for edge in edges))  # the sink has moved nowhere yet
        if done:
            some(0, done, 0, None)
        if done == rows:
            return
    chunk = max(1 if q.dtype.itemsize > 2 else HALF_CHUNK, -(-threads() // (heads * len(k))))
    causal = torch.zeros(1, BLOCK * chunk, keys + BLOCK * chunk, dtype=q.dtype, device=q.device)
    causal[..., keys:] = torch.full_like(causal[..., keys:], -torch.inf).triu(1)
    which, states = torch.arange(len(k), device=k.device)[:, None], list(held)
    sink_keys, sink_values = k[which, held], v[which, held]  # [states, KV heads, slots, D]
    while done < rows:
        block = (past + done) // BLOCK
        edge, *later = edges[block - past // BLOCK :][:chunk]
        end = min(rows, BLOCK * (block + chunk) - past)
        lead = BLOCK * (edge - begin)
        if lead:
            k[:, lead : lead + size], v[:, lead : lead + size] = sink_keys[state(edge)], sink_values[state(edge)]
        bias = causal[:, : end - done, end - done + rows - end + lead : keys + end - done]
        if later and later[-1] > edge:
            kept = [states[state(e)] for e in (edge, *later)]
            bias = _hide(bias, kept, [own - edge for own in later], lead, BLOCK * (block + 1) - past - done)
        some(done, end, lead, bias)
        done = end


def _hide(bias: Tensor, kept: list[Tensor], gone: list[int], lead: int, row: int) -> Tensor:
    """Return `bias` that also hides, from a chunk's later blocks, keys that have left the window but for the sink's.

    Args:
        bias: [1, rows, keys].
        kept: Indices of the keys that the sink holds for each block of the chunk [1 or KV heads, slots].
        gone: How many blocks more than for the first of them have left the window for each later one.
        lead: Index of the first key that the chunk reads.
        row: First row of the second block.

    Returns:
        [1 or KV heads, rows, keys].
    """
    here, *later = kept
    size = here.shape[1]
    left = torch.arange(lead + size, lead + size + BLOCK * gone[-1], device=bias.device)
    index = torch.cat([here, left.expand(len(here), -1)], 1)
    bias = bias.repeat(len(here), 1, 1)
    for i, (blocks, mine) in enumerate(zip(gone, later, strict=True)):
        rows, end = slice(row + BLOCK * i, row + BLOCK * (i + 1)), size + BLOCK * blocks
        if mine is here:  # a sink that never changes
            bias[:, rows, size:end] = -torch.inf
        else:
            hidden = (index[:, :end, None] != mine[:, None]).all(-1)
            bias[:, rows, :end].masked_fill_(hidden[:, None], -torch.inf)
    return bias
