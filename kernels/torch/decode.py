"""Decode of back-end `torch`: whole slabs multiplied in place, one batch per run of equal slabs.

A bias of -inf hides the slots that a row does not see; it is small beside keys, and nothing of the past is copied. This
relies on every slot being finite, as `allocate` and `append` leave them, since a weight of 0 times NaN is NaN. Scores
and the softmax are float32 at least: where keys have biases, q·k passes float16's range and bfloat16 tells few apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.softmax import Softmax, weights
from moa.kernels.store import Store, find_tokens, period, slots, text_block
from moa.plans.span import BLOCK

LARGE = 1 << 18
"""Numbers in a slab's keys from which sharing it out among threads pays (4,096 slots of 64; measured on 2 cores)."""


def decode(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, softmax: Softmax
) -> Tensor:
    """Append 1 to 64 new tokens of every sequence, then attend from the slabs alone.

    Shapes are fixed, and for tensors on a device the host is not synchronised.
    """
    tokens, groups, size = k.shape
    width = _width(batch.cu_seqlens, tokens)
    make = _next if width == 1 and _on_host(batch.past) else _rows
    rows = make(store, batch, seen, width, q)
    store.k.index_copy_(0, rows.place, k.reshape(-1, size))
    store.v.index_copy_(0, rows.place, v.reshape(-1, size))

    # From here on slabs are in the order of the store, so that runs are slices.
    queries = q.reshape(tokens * groups, -1, size)
    if rows.index is not None:
        queries = queries.index_select(0, rows.index)
    if width > 1:
        queries = queries.view(len(store.order), -1, size)  # [slabs, width * heads, D]
    sinks = softmax.sinks_of(groups)
    if sinks is not None:
        sinks = sinks[store.order % groups].repeat(1, width)  # [slabs, width * heads]
    results, done = [], 0
    for slabs in rows.slabs:
        part = queries if len(rows.slabs) == 1 else queries[done : done + slabs.at_once]
        mine = None if sinks is None else sinks[done : done + slabs.at_once]
        results.append(_attend(part, slabs, softmax._replace(sink_logits=mine)))
        done += slabs.at_once
    result = results[0] if len(results) == 1 else torch.cat(results)
    if rows.index is None:
        return result.view(q.shape)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    out.view(tokens * groups, -1).index_copy_(0, rows.index, result.view(len(rows.index), -1))
    return out


def _width(cu_seqlens: Tensor, tokens: int) -> int:
    """Return the most new tokens of a sequence, or an upper bound where reading `cu_seqlens` would mean a wait.

    The bound relies on every sequence having a new token.
    """
    sequences = len(cu_seqlens) - 1
    if tokens > sequences and _on_host(cu_seqlens):
        return int(cu_seqlens.diff().max())
    return tokens - sequences + 1


class _Slabs(NamedTuple):
    """Slabs to multiply at once, as views of the store, which stay valid until a row begins a new block."""

    at_once: int
    keys: Tensor
    """[slabs or pieces, D, slots]; a lone slab may be cut into pieces for the threads."""
    values: Tensor
    """[slabs or pieces, slots, D]."""
    bias: Tensor
    """Added to the scores: [slabs or pieces, 1 or width * heads, slots]."""


@dataclass
class _Rows:
    """Where a step's new keys go and what its rows see."""

    place: Tensor
    """int64: slot of each new key."""
    bias: Tensor
    """[width, slots]: 0 for the slots that a row sees, else -inf."""
    slabs: list[_Slabs]
    index: Tensor | None
    """int64 [slabs * width]: token * kv_heads + group of each row; None where rows lie in order already."""


def _rows(store: Store, batch: Packed, seen: Visibility, width: int, q: Tensor) -> _Rows:
    """Return the rows of a step with up to `width` new tokens of each sequence."""
    cu_seqlens, past, sink = batch.cu_seqlens, batch.past, seen.sink
    torch._assert_async((cu_seqlens[1:] > cu_seqlens[:-1]).all(), "decode needs a new token of every sequence")
    groups = len(sink)
    if width == 1:
        at = past[:, None]
        place = slots(at, sink, store.base, store.capacity).flatten()
        index = store.order if len(store.runs) > 1 else None
    else:  # a sequence with fewer rows repeats its last
        row = torch.minimum(cu_seqlens[:-1, None] + torch.arange(width, device=q.device), cu_seqlens[1:, None] - 1)
        index = row[:, None] * groups + torch.arange(groups, device=q.device)[:, None]  # [sequences, groups, width]
        index = index.flatten(0, 1)[store.order].flatten()
        sequence, position = find_tokens(cu_seqlens, past, len(q))
        place = slots(position[:, None], sink, store.base[sequence], store.capacity[sequence]).flatten()
        at = past[:, None] + row - cu_seqlens[:-1, None]
    bias = _bias(store, seen, at, _wide(q.dtype))
    slabs = list(_slabs(store, bias, q.shape[1] // groups, _reach(past, width)))
    return _Rows(place, bias, slabs, index)


@dataclass
class _Kept:
    """The rows of the last step, and what they were made from."""

    first: Tensor
    cu_seqlens: Tensor
    past: list[int]
    rows: _Rows


def _next(store: Store, batch: Packed, seen: Visibility, width: int, q: Tensor) -> _Rows:
    """Return the `_rows` of a step with one token per sequence, updated from those of the last step where possible.

    That is where every length has grown by one and no block begins: each token then goes one slot further and also sees
    that slot. This saves most of a step's small operations.
    """
    past, kept = batch.past.tolist(), store.scratch.get("row")
    if (
        kept
        and kept.first is seen.first
        and kept.cu_seqlens is batch.cu_seqlens
        and all(n == before + 1 and n % BLOCK for n, before in zip(past, kept.past, strict=True))
    ):
        kept.rows.place.add_(1)
        kept.rows.bias.index_fill_(1, kept.rows.place, 0)
        kept.past = past
    else:
        with torch.inference_mode(False):  # so that later calls, outside of inference mode, may write too
            rows = _rows(store, batch, seen, width, q)
        kept = store.scratch["row"] = _Kept(seen.first, batch.cu_seqlens, past, rows)
    return kept.rows


def _slabs(store: Store, bias: Tensor, heads: int, reach: int) -> Iterator[_Slabs]:
    """Yield the slabs' slots up to `reach`, in batches; a batch item is one thread's work.

    A few large slabs that would leave threads idle come one by one instead, each cut into pieces.
    """
    available, size = threads(), store.k.shape[1]
    for start, room, pairs in store.runs:
        count, used = len(pairs), min(room, reach)
        uneven = count % available and count < 4 * available
        at_once = 1 if uneven and room * size >= LARGE else count
        cut = at_once == 1 and used * size >= LARGE // 4
        pieces = min(BLOCK, 1 << (available - 1).bit_length()) if cut else 1  # a power of two: divides used
        for begin in range(start, start + count * room, at_once * room):
            part = slice(begin, begin + at_once * room)
            keys, values = (x[part].view(at_once, -1, size)[:, :used] for x in (store.k, store.v))
            hide = bias[:, part].view(len(bias), at_once, -1)[..., :used].transpose(0, 1)
            if len(bias) > 1:
                hide = hide.repeat_interleave(heads, 1)
            if pieces > 1:
                keys, values = (x.view(pieces, -1, size) for x in (keys, values))
                hide = hide.reshape(-1, pieces, used // pieces).transpose(0, 1)
            yield _Slabs(at_once, keys.transpose(1, 2), values, hide)


def _attend(q: Tensor, slabs: _Slabs, softmax: Softmax) -> Tensor:
    """Return the attention of the rows [slabs, width * heads, D] of some slabs, whose learned sinks are like rows."""
    pieces = len(slabs.keys) // slabs.at_once
    if pieces > 1:
        q = q.expand(pieces, -1, -1)
    scores, values = _scores(q, slabs, softmax), slabs.values
    if pieces > 1:
        scores = scores.transpose(0, 1).reshape(1, q.shape[1], -1)
    weight, _ = weights(scores, softmax.sink_logits)
    if q.dtype == torch.bfloat16:
        weight = weight.to(q.dtype)
    else:  # CPUs multiply float32 faster than float16, the copy counted
        values = values.to(weight.dtype)
    if pieces == 1:
        return torch.bmm(weight, values).to(q.dtype)
    weight = weight.reshape(q.shape[1], pieces, -1).transpose(0, 1)
    return torch.bmm(weight, values).sum(0, keepdim=True).to(q.dtype)


def _scores(q: Tensor, slabs: _Slabs, softmax: Softmax) -> Tensor:
    """Return q·k, scaled, capped and biased, in float32 at least: [slabs or pieces, width * heads, slots]."""
    wide = _wide(q.dtype)
    if q.dtype == torch.bfloat16:
        rounded = torch.bmm(q, slabs.keys)
        # What rounding took; two products of bfloat16 are faster than one of keys converted to float32.
        scores = rounded.to(wide) + torch.baddbmm(rounded, q, slabs.keys, beta=-1)
    elif softmax.cap is None:
        return torch.baddbmm(slabs.bias, q.to(wide), slabs.keys.to(wide), alpha=softmax.scale)
    else:
        scores = torch.bmm(q.to(wide), slabs.keys.to(wide))
    if softmax.cap is None:
        return torch.add(slabs.bias, scores, alpha=softmax.scale)
    return softmax.capped(scores * softmax.scale) + slabs.bias


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of scores and their softmax."""
    return torch.promote_types(dtype, torch.float32)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def threads() -> int:
    """Return torch's number of CPU threads, a constant to the compiler."""
    return torch.get_num_threads()


def _bias(store: Store, seen: Visibility, at: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 for the slots that a row sees, else -inf: [width, slots].

    Args:
        store: The store; it counts the rows' own keys as stored.
        seen: What the rows see.
        at: Positions of the rows [sequences, width], rising.
        dtype: Type of the result.
    """
    sinks, row = (seen.sink // BLOCK)[store.group], at.T[:, store.sequence]
    after = period(store.place, sinks, store.capacity[store.sequence, store.group])
    block = text_block(store.place, after, row[-1] // BLOCK)
    kept = (block < sinks) | (block >= seen.first[store.group, row // BLOCK])
    visible = torch.where(kept, row + 1 - BLOCK * block, 0)  # leading slots of each block
    hidden = torch.arange(BLOCK, device=at.device) >= visible[..., None]
    return torch.zeros(hidden.shape, dtype=dtype, device=at.device).masked_fill_(hidden, -torch.inf).flatten(1)


def _on_host(x: Tensor) -> bool:
    """Return whether the host can read the values without waiting for a device."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _reach(past: Tensor, width: int) -> int:
    """Return how many slots of a slab can hold keys, in whole blocks; no limit where reading `past` means a wait."""
    if not _on_host(past):
        return torch.iinfo(torch.int64).max
    return BLOCK * -(-(int(past.max()) + width) // BLOCK)
