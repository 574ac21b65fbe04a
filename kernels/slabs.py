"""Decode of back-end `torch`: whole slabs multiplied in place, one batch per run of equal slabs.

A bias of -inf hides the slots that a row does not see; it is small beside keys, and nothing of the past is copied. This
relies on every slot being finite, as `allocate` and `append` leave them, since a weight of 0 times NaN is NaN. In half
precision scores are rounded to that precision, as in eager attention; the softmax is float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moa.kernels.store import Store, find_tokens, period, slots, text_block
from moa.plans.span import BLOCK

LARGE = 1 << 18
"""Numbers in a slab's keys from which sharing it out among threads pays (4,096 slots of 64; measured on 2 cores)."""


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor,
    sink: Tensor,
    store: Store,
    starts: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """The decode form, for 1 to 64 new tokens of every sequence: append, then attend from the slabs alone.

    Fixed shapes and no host synchronisation for tensors on a device.

    Returns:
        [tokens, query_heads, D].
    """
    tokens, groups, size = k.shape
    sequences = len(lengths)
    width = tokens - sequences + 1  # the most rows a sequence can bring when each brings one
    torch._assert_async((starts[1:] > starts[:-1]).all(), "step needs a new token of every sequence")
    if width == 1:
        index = store.order
        place, bias = (_next if _on_host(lengths) else _row)(store, first, sink, lengths, q.dtype)
    else:  # a sequence with fewer rows repeats its last
        row = torch.minimum(starts[:-1, None] + torch.arange(width, device=q.device), starts[1:, None] - 1)
        index = row[:, None] * groups + torch.arange(groups, device=q.device)[:, None]  # [sequences, groups, width]
        index = index.flatten(0, 1)[store.order].flatten()
        sequence, position = find_tokens(starts, lengths, tokens)
        place = slots(position[:, None], sink, store.base[sequence], store.capacity[sequence]).flatten()
        bias = _bias(store, first, sink, lengths[:, None] + row - starts[:-1, None], q.dtype)
    store.k.index_copy_(0, place, k.reshape(-1, size))
    store.v.index_copy_(0, place, v.reshape(-1, size))

    # From here on slabs are in the order of the store, so that runs are slices.
    queries = q.reshape(tokens * groups, -1).index_select(0, index)
    queries = queries.view(len(store.order), -1, size)  # [slabs, width * heads, D]
    result = torch.empty_like(queries)
    reach = _reach(lengths, width)
    done = 0
    for start, count, room in _batches(store):
        used, stop = min(room, reach), start + count * room
        keys, values = (x[start:stop].view(count, -1, size)[:, :used] for x in (store.k, store.v))
        hide = bias[:, start:stop].view(width, count, -1)[..., :used].transpose(0, 1)
        result[done : done + count] = _slabs(queries[done : done + count], keys, values, hide, scale)
        done += count
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    out.view(tokens * groups, -1).index_copy_(0, index, result.view(len(index), -1))
    return out


def _row(store: Store, first: Tensor, sink: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Slots of one new token per sequence, [sequences * kv_heads], and the bias [1, slots] for them."""
    at = lengths[:, None]
    return slots(at, sink, store.base, store.capacity).flatten(), _bias(store, first, sink, at, dtype)


@dataclass
class _Kept:
    """`_row` of the last step, and what it was made from."""

    first: Tensor
    lengths: list[int]
    place: Tensor
    bias: Tensor


def _next(store: Store, first: Tensor, sink: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`_row`, from the last step's where every length is one more and no block begins.

    Then each token goes one slot further and sees that slot besides: most of a step's small operations are saved.
    """
    now, kept = lengths.tolist(), store.scratch.get("row")
    if kept and kept.first is first and kept.lengths == [n - 1 for n in now] and all(n % BLOCK for n in now):
        kept.place += 1
        kept.bias[0].index_fill_(0, kept.place, 0)
        kept.lengths = now
    else:
        with torch.inference_mode(False):  # so that later calls, outside of inference mode, may write too
            place, bias = _row(store, first, sink, lengths, dtype)
        kept = store.scratch["row"] = _Kept(first, now, place, bias)
    return kept.place, kept.bias


def _batches(store: Store) -> Iterator[tuple[int, int, int]]:
    """Slabs to multiply in one batch: (first slot, number of slabs, slots of each).

    A batch item is one thread's work. A few large slabs that would leave threads idle come one by one instead, for
    `_slabs` to cut up.
    """
    available = threads()
    for start, room, pairs in store.runs:
        count = len(pairs)
        uneven = count % available and count < 4 * available
        if uneven and room * store.k.shape[1] >= LARGE:
            yield from ((start + i * room, 1, room) for i in range(count))
        else:
            yield start, count, room


def _slabs(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention of a batch of slabs, a lone one cut into pieces for the threads.

    Args:
        q: [slabs, width * heads, D].
        k: [slabs, slots, D], like v.
        v: See k.
        bias: [slabs, width, slots], added to the scores.
        scale: Factor on q·k.
    """
    count, used, size = k.shape
    rows, width = q.shape[1], bias.shape[1]
    if width > 1:
        bias = bias.repeat_interleave(rows // width, 1)
    pieces = 1
    if count == 1 and used * size >= LARGE // 4:
        pieces = min(BLOCK, 1 << (threads() - 1).bit_length())  # a power of two: divides used
        q, k, v = q.expand(pieces, -1, -1), k.view(pieces, -1, size), v.view(pieces, -1, size)
        bias = bias.reshape(-1, pieces, used // pieces).transpose(0, 1)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    if pieces > 1:
        scores = scores.transpose(0, 1).reshape(1, rows, used)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    if pieces == 1:
        return torch.bmm(weights, v)
    return torch.bmm(weights.view(rows, pieces, -1).transpose(0, 1), v).sum(0, keepdim=True)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def threads() -> int:
    """Threads of the CPU, a constant to the compiler."""
    return torch.get_num_threads()


def _bias(store: Store, first: Tensor, sink: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """0 for the slots that a row sees, else -inf: [width, slots].

    Args:
        store: The rows' own keys count as held.
        first: int32 [kv_heads, blocks].
        sink: int32 [kv_heads], tokens.
        at: Positions of the rows, [sequences, width], rising.
        dtype: Of the result.
    """
    sinks, row = (sink // BLOCK)[store.group], at.T[:, store.sequence]
    after = period(store.place, sinks, store.capacity[store.sequence, store.group])
    block = text_block(store.place, after, row[-1] // BLOCK)
    kept = (block < sinks) | (block >= first[store.group, row // BLOCK])
    seen = torch.where(kept, row + 1 - BLOCK * block, 0)  # leading slots of each block
    hidden = torch.arange(BLOCK, device=at.device) >= seen[..., None]
    return torch.zeros(hidden.shape, dtype=dtype, device=at.device).masked_fill_(hidden, -torch.inf).flatten(1)


def _on_host(x: Tensor) -> bool:
    """Whether reading values costs no wait."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _reach(lengths: Tensor, width: int) -> int:
    """Slots of a slab that can hold keys, rounded up to blocks; a bound without end where asking would cost a wait."""
    if not _on_host(lengths):
        return torch.iinfo(torch.int64).max
    return BLOCK * -(-(int(lengths.max()) + width) // BLOCK)
