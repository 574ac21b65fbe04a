"""Decode of back-end `torch`: whole slabs multiplied in place, one batch per run of equal slabs.

The scores of slots that a row does not see are set to -inf: scores are small beside keys, and nothing of the past is
copied. This relies on every slot being finite, as `allocate` and `append` leave them, since a weight of 0 times NaN is
NaN. In half precision scores are rounded to that precision, as in eager attention; the softmax is float32.
"""

from collections.abc import Iterator

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
    torch._assert_async((starts[1:] > starts[:-1]).all(), "step needs a new token of every sequence")
    width = tokens - sequences + 1  # the most rows a sequence can bring when each brings one
    if width == 1:
        at, index = lengths[:, None], store.order
        place = slots(at, sink, store.base, store.capacity)
    else:  # a sequence with fewer rows repeats its last
        row = torch.minimum(starts[:-1, None] + torch.arange(width, device=q.device), starts[1:, None] - 1)
        at = lengths[:, None] + row - starts[:-1, None]
        index = row[:, None] * groups + torch.arange(groups, device=q.device)[:, None]  # [sequences, groups, width]
        index = index.flatten(0, 1)[store.order].flatten()
        sequence, position = find_tokens(starts, lengths, tokens)
        place = slots(position[:, None], sink, store.base[sequence], store.capacity[sequence])
    store.k.index_copy_(0, place.flatten(), k.reshape(-1, size))
    store.v.index_copy_(0, place.flatten(), v.reshape(-1, size))

    # From here on slabs are in the order of the store, so that runs are slices.
    queries = (scale * q).reshape(tokens * groups, -1).index_select(0, index)
    queries = queries.view(len(store.order), -1, size)  # [slabs, width * heads, D]
    result = torch.empty_like(queries)
    seen, reach = _seen(store, first, sink, at), _reach(lengths, width)
    offset = torch.arange(BLOCK, dtype=torch.uint8, device=q.device)
    done = 0
    for start, count, room in _batches(store):
        used, stop = min(room, reach), start + count * room
        keys, values = (x[start:stop].view(count, -1, size)[:, :used] for x in (store.k, store.v))
        blocks = seen[:, start // BLOCK : stop // BLOCK].view(width, count, -1)[..., : used // BLOCK]
        hidden = (offset >= blocks.transpose(0, 1)[..., None]).flatten(2)
        result[done : done + count] = _slabs(queries[done : done + count], keys, values, hidden)
        done += count
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    out.view(tokens * groups, -1)[index] = result.view(len(index), -1)
    return out


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


def _slabs(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> Tensor:
    """Attention of a batch of slabs, a lone one cut into pieces for the threads.

    Args:
        q: [slabs, width * heads, D], scaled.
        k: [slabs, slots, D], like v.
        v: See k.
        hidden: bool [slabs, width, slots].
    """
    count, used, size = k.shape
    rows, width = q.shape[1], hidden.shape[1]
    pieces = 1
    if count == 1 and used * size >= LARGE // 4:
        pieces = min(BLOCK, 1 << (threads() - 1).bit_length())  # a power of two: divides used
        q, k, v = q.expand(pieces, -1, -1), k.view(pieces, -1, size), v.view(pieces, -1, size)
    scores = torch.bmm(q, k.transpose(1, 2))
    if pieces > 1:
        scores = scores.transpose(0, 1).reshape(1, rows, used)
    scores.view(count, width, -1, used).masked_fill_(hidden[:, :, None], -torch.inf)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    if pieces == 1:
        return torch.bmm(weights, v)
    return torch.bmm(weights.view(rows, pieces, -1).transpose(0, 1), v).sum(0, keepdim=True)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def threads() -> int:
    """Threads of the CPU, a constant to the compiler."""
    return torch.get_num_threads()


def _seen(store: Store, first: Tensor, sink: Tensor, at: Tensor) -> Tensor:
    """How many leading slots of each block of the store a row sees: uint8 [width, slots/64].

    Args:
        store: Already holding the rows' own keys.
        first: int32 [kv_heads, blocks].
        sink: int32 [kv_heads], tokens.
        at: Positions of the rows, [sequences, width], rising.
    """
    sinks, row = (sink // BLOCK)[store.group], at.T[:, store.sequence]
    after = period(store.place, sinks, store.capacity[store.sequence, store.group])
    block = text_block(store.place, after, row[-1] // BLOCK)
    kept = (block < sinks) | (block >= first[store.group, row // BLOCK])
    return torch.where(kept, row + 1 - BLOCK * block, 0).clamp_(0, BLOCK).to(torch.uint8)


def _reach(lengths: Tensor, width: int) -> int:
    """Slots of a slab that can hold keys, rounded up to blocks; a bound without end where asking would cost a wait."""
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return torch.iinfo(torch.int64).max
    return BLOCK * -(-(int(lengths.max()) + width) // BLOCK)
