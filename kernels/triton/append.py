"""Append new keys and values to their slabs, and summarise the pages that they fill where rows choose pages.

Each kept row is moved once: 4 * D * bytes per row and group. Its key is read once more for the summaries.
"""

import triton
import triton.language as tl
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.store import Store
from moa.kernels.triton.common import (
    BLOCK,
    RUN_TIME,
    find_sequence,
    load_rows,
    on_device,
    require_supported,
    slab,
    slot_of,
)
from moa.kernels.triton.pieces import pieces
from moa.kernels.triton.summaries import even_part, summarise_rows
from moa.kernels.triton.tiles import append_warps


@triton.jit
def append_rows(
    k, v, k_store, v_store, k_token, v_token, start, count, past, offset, slot0, sink_blocks, ring,
    D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write new tokens offset .. offset + ROWS of one sequence and group: the sink's, and the newest that fit the ring.

    `k` and `v` point at the group's first row.
    """
    token = offset + tl.arange(0, ROWS)
    at = past + token
    kept = (token < count) & ((at // BLOCK < sink_blocks) | (at // BLOCK > (past + count - 1) // BLOCK - ring))
    slot = slot_of(at // BLOCK, slot0, sink_blocks, ring) + at % BLOCK
    source = (start + token).to(tl.int64)
    column = tl.arange(0, WIDTH)
    target = slot[:, None] * D + column[None, :]
    mask = kept[:, None] & (column < D)[None, :]
    tl.store(k_store + target, load_rows(k + source * k_token, kept, D, WIDTH, True), mask=mask)
    tl.store(v_store + target, load_rows(v + source * v_token, kept, D, WIDTH, True), mask=mask)


@triton.jit(do_not_specialize=RUN_TIME)
def append_kernel(
    k, v, k_store, v_store, summaries, sink, base, capacity, cu_seqlens, pasts, sequences, groups,
    k_token, k_head, v_token, v_head, D: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write ROWS new tokens of one sequence and group, and the summaries of pages unless `summaries` is None."""
    group = tl.program_id(1).to(tl.int64)
    sequence, tile = find_sequence(cu_seqlens, sequences, tl.program_id(0), 1, ROWS)
    start = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - start
    past = tl.load(pasts + sequence).to(tl.int32)
    slot0, sink_blocks, ring = slab(base, capacity, sink, sequence * groups + group, group)
    if tile * ROWS < count:
        append_rows(
            k + group * k_head, v + group * v_head, k_store, v_store, k_token, v_token, start, count, past,
            tile * ROWS, slot0, sink_blocks, ring, D, WIDTH, ROWS,
        )  # fmt: skip
        if summaries is not None:
            summarise_rows(
                k + group * k_head, k_store, summaries, k_token, start, count, past, tile * ROWS, slot0, sink_blocks,
                ring, D, EVEN, ROWS,
            )  # fmt: skip


def append(store: Store, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility) -> None:
    """Write the new tokens into their slabs: those of the sink, and the newest that the ring has room for.

    Where the store has summaries, those of the pages that the tokens fill are written too.
    """
    require_supported(k, v)
    pieces(store)  # the next step may lie in a graph, which must not make the list
    tokens, groups, dim = k.shape
    sequences, rows = len(batch.cu_seqlens) - 1, 64
    with on_device(k):
        append_kernel[(tokens // rows + sequences, groups)](
            k, v, store.k, store.v, store.summaries, seen.sink, store.base, store.capacity, batch.cu_seqlens,
            batch.past, sequences, groups, *k.stride()[:2], *v.stride()[:2], D=dim,
            WIDTH=triton.next_power_of_2(dim), EVEN=even_part(dim), ROWS=rows,
            num_warps=append_warps(store.summaries is not None),
        )  # fmt: skip
