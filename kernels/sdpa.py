"""Back-end `torch`: library attention in an order that follows the plan. Fast on CPU, runs anywhere.

Prefill takes groups whose rules give the same table together and walks over their query blocks. A buffer holds their
keys in the order of the text; before each chunk of rows the sink's keys are written just below the window's first
block, over keys that no later row wants, so that every chunk reads one contiguous slice [sink | window | own]. The rows
of a fresh text that see all of it are one causal call.

Decode multiplies whole slabs in place, one batch per run of equal slabs, and sets the scores of slots that a row does
not see to -inf: scores are small beside keys, and nothing of the past is copied. It relies on every slot being finite,
as `allocate` and `append` leave them, since a weight of 0 times NaN is NaN.

Arguments are those of `moa.kernels.reference`. In half precision `step` rounds scores to that precision, as eager
attention does; its softmax is float32.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moa.kernels.store import Store, period, slots, text_block
from moa.plans.span import BLOCK

LARGE = 1 << 18
"""Numbers in a slab's keys from which sharing it out among threads pays (4,096 slots of 64; measured on 2 cores)."""
HALF_CHUNK = 3
"""Blocks in a chunk of rows in half precision: library attention takes tiles of 64 rows, not 32, from 192 rows on."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first: Tensor,
    sink: Tensor,
    store: Store | None = None,
    starts: Tensor,
    lengths: Tensor,
    scale: float,
) -> Tensor:
    """Attention of the new tokens over the store's past and themselves; writes nothing.

    Returns:
        [tokens, query_heads, D].
    """
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    by_group, out_by_group = (x.unflatten(1, (k.shape[1], -1)) for x in (q, out))
    offsets = starts.tolist()
    for s, past in enumerate(lengths.tolist()):
        new = slice(offsets[s], offsets[s + 1])
        count = new.stop - new.start
        if count == 0:
            continue
        for groups, edges, sinks in _alike(first, sink, past // BLOCK, (past + count - 1) // BLOCK):
            keys, values = (x[new, groups].transpose(0, 1).clone(memory_format=torch.contiguous_format) for x in (k, v))
            if store is not None and past:
                at = torch.arange(past - BLOCK * (edges[0] - sinks), device=q.device)
                at = torch.where(at < BLOCK * sinks, at, at + BLOCK * (edges[0] - sinks))
                place = slots(at, *(x[groups, None] for x in (sink, store.base[s], store.capacity[s])))
                keys, values = torch.cat([store.k[place], keys], 1), torch.cat([store.v[place], values], 1)
            rows = by_group[new, groups].flatten(1, 2).transpose(0, 1)
            result = _walk(rows, keys, values, past, edges, sinks, scale)
            out_by_group[new, groups] = result.transpose(0, 1).unflatten(1, (len(keys), -1))
    return out


def append(store: Store, k: Tensor, v: Tensor, *, sink: Tensor, starts: Tensor, lengths: Tensor) -> None:
    """Write the new tokens into their slabs: the sink's, and the newest that the ring has room for."""
    sequence, position = _places(starts, lengths, k.shape[0])
    block, end = position // BLOCK, (lengths + starts.diff() - 1) // BLOCK
    ring = store.capacity // BLOCK - sink // BLOCK
    kept = (block[:, None] < sink // BLOCK) | (block[:, None] > (end[:, None] - ring)[sequence])
    place = slots(position[:, None], sink, store.base[sequence], store.capacity[sequence])[kept]
    store.k[place], store.v[place] = k[kept], v[kept]


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
        sequence, position = _places(starts, lengths, tokens)
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
    threads = _threads()
    for start, room, pairs in store.runs:
        count = len(pairs)
        uneven = count % threads and count < 4 * threads
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
        pieces = min(BLOCK, 1 << (_threads() - 1).bit_length())  # a power of two: divides used
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
def _threads() -> int:
    return torch.get_num_threads()


def _alike(first: Tensor, sink: Tensor, begin: int, end: int) -> list[tuple[slice | list[int], tuple[int, ...], int]]:
    """Groups that see the same in query blocks begin … end: [(groups, first block per query block, sink blocks)]."""
    sets: dict[tuple[tuple[int, ...], int], list[int]] = {}
    sinks = (sink // BLOCK).tolist()
    for group, edges in enumerate(first[:, begin : end + 1].tolist()):
        sees_all = edges[-1] <= sinks[group]
        key = ((0,) * len(edges), 0) if sees_all else (tuple(edges), sinks[group])
        sets.setdefault(key, []).append(group)
    return [(_index(groups), *key) for key, groups in sets.items()]


def _index(groups: list[int]) -> slice | list[int]:
    """A slice where the groups are adjacent, so that indexing gives a view."""
    adjacent = groups[-1] - groups[0] == len(groups) - 1
    return slice(groups[0], groups[-1] + 1) if adjacent else groups


def _walk(q: Tensor, k: Tensor, v: Tensor, past: int, edges: tuple[int, ...], sinks: int, scale: float) -> Tensor:
    """Attention of groups that see the same.

    A chunk is one block, where work equals what the plan keeps but for half the diagonal block. It is more where the
    heads alone would not give every thread two tiles of 32 rows.

    Args:
        q: [query heads, rows, D], at positions past, past + 1, ….
        k: [KV heads, keys, D], contiguous: the sink's keys, then those from block edges[0] on; overwritten.
        v: Likewise.
        past: Position of the first row.
        edges: First block kept besides the sink, per query block.
        sinks: Blocks of the sink.
        scale: Factor on q·k.
    """
    heads, rows, _ = q.shape
    keys = k.shape[1]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)

    def sdpa(begin: int, end: int, lead: int, bias: Tensor | None) -> None:
        stop = keys - rows + end
        out[:, begin:end] = scaled_dot_product_attention(
            q[None, :, begin:end], k[None, :, lead:stop], v[None, :, lead:stop], bias,
            is_causal=bias is None, scale=scale, enable_gqa=heads != len(k),
        )[0]  # fmt: skip

    done = 0
    if past == 0:
        done = min(rows, BLOCK * sum(edge <= sinks for edge in edges))
        if done:
            sdpa(0, done, 0, None)
    chunk = max(1 if q.dtype.itemsize > 2 else HALF_CHUNK, -(-_threads() // heads))
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
        sdpa(done, end, lead, _hide(bias, later, edge, sinks, BLOCK * (block + 1) - past - done))
        done = end
    return out


def _hide(bias: Tensor, later: list[int], edge: int, sinks: int, row: int) -> Tensor:
    """`bias` where also the chunk's later blocks, whose rows begin at `row`, do not see below their own first block."""
    if later and later[-1] > edge:
        bias = bias.clone()
        for i, own in enumerate(later):
            bias[row + BLOCK * i : row + BLOCK * (i + 1), BLOCK * sinks : BLOCK * (sinks + own - edge)] = -torch.inf
    return bias


def _places(starts: Tensor, lengths: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """The sequence and the position of each packed token."""
    token = torch.arange(tokens, device=starts.device, dtype=starts.dtype)
    sequence = torch.searchsorted(starts[1:].contiguous(), token, right=True)
    return sequence, lengths[sequence] + token - starts[sequence]


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
