"""Decode for rows that read only some pages of what they see: choose them by their summaries, attend to them.

Algorithm. Eight launches on a grid that is the same at every step, without a wait for the device:

1. `append_kernel` writes the new keys, and the summaries of the pages that they fill. No row of this call chooses among
   those pages, so the next launches need not wait for it.
2. `page_scores_kernel`, `page_choice_kernel`: which coarse pages each row of each group opens.
3. The same two again: which fine pages inside of those it fetches. A row that chooses nothing ends them at once.
4. `decode_kernel` attends in slabs whose rows all read what they see, to the last bit as in a step without reads, and
   `read_kernel` in the others, on the same pieces. It cuts each row's pages into equal parts, one for each piece of the
   slab: those before the pages among which it chooses, the chosen ones, and those after. A tile of 64 keys is 16 pages
   of four adjacent keys, each of them one run of 8 * D bytes in half precision.
5. `join_kernel` joins the pieces.

Work. Bytes: `moa.plans.reading.read_bytes` counts them; besides, a score takes 4 bytes per page scored and query head,
read and written a few times, most of it in caches.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.kernels.triton.append import append
from moa.kernels.triton.budget import FINE, find_row, pages_read, place_of, reads_all, tiles_of_piece
from moa.kernels.triton.common import BLOCK, RUN_TIME, fold, in_base_2, load_rows, on_device, start_rows
from moa.kernels.triton.decode import attend_pieces, join, pieces_of, room, tiles_of, write_rows
from moa.kernels.triton.page_choice import page_choice_kernel
from moa.kernels.triton.page_scores import AT_ONCE, page_scores_kernel
from moa.kernels.triton.pieces import pieces
from moa.kernels.triton.tiles import choice_size
from moa.plans import reading as definition
from moa.plans import span

INSIDE = definition.INSIDE
WORK = 1 << 28
"""Bytes that scores and lists may take; more new tokens of the sequences than fit are computed one after the other."""


@triton.jit
def _pages(tile, chosen, start, counts, where):
    """Return for each key of a tile of what a row reads the number of its fine page in the store [64]."""
    head, listed, tail, _, _ = pages_read(start, counts)
    index = tile * (BLOCK // FINE) + tl.arange(0, BLOCK) // FINE
    by_choice = (index >= head) & (index < head + listed)
    fine = tl.load(chosen + index - head, mask=by_choice, other=0)
    at = tl.where(index < head, index, index - head - listed + tail)
    return tl.where(by_choice, fine, place_of(at // (BLOCK // FINE), where) * (BLOCK // FINE) + at % (BLOCK // FINE))


@triton.jit
def attend_pages(
    q, out, lse, k_store, v_store, chosen, scale, cap, sink_logits, token, piece, pieces, group, where, start, counts,
    groups, q_token, q_head, HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend from one token to its share of a piece; `chosen` points at its pages, `out` and `lse` at the part's."""
    _, _, _, pages, keys = pages_read(start, counts)
    each = tiles_of_piece(pages, pieces)
    begin = piece * each
    end = tl.minimum(begin + each, tl.cdiv(pages, BLOCK // FINE))
    if begin < end:
        lane = tl.arange(0, BLOCK)
        factor, limit = in_base_2(scale, cap)
        for tile in range(0, HEADS, ROWS):
            inside = tile + tl.arange(0, ROWS)
            live = inside < HEADS
            query_head = group * HEADS + tl.minimum(inside, HEADS - 1)
            rows_q = q + token.to(tl.int64) * q_token + query_head.to(tl.int64) * q_head
            tile_q = load_rows(rows_q, live, D, WIDTH, True)
            top, total, acc = start_rows(sink_logits, query_head, piece, ROWS, WIDTH)
            for i in tl.range(begin, end):
                page = _pages(i, chosen, start, counts, where)
                slot = tl.multiple_of((page.to(tl.int64) * FINE + lane % FINE) * D, [16])
                known = i * BLOCK + lane < keys
                tile_k = load_rows(k_store + slot, known, D, WIDTH, True)
                tile_v = load_rows(v_store + slot, known, D, WIDTH, True)
                top, total, acc = fold(
                    tile_q, tile_k, tile_v, known[None, :], top, total, acc, factor, limit, True, PRECISION
                )
            tokens = tl.zeros_like(inside) + token
            write_rows(out, lse, tokens, query_head, live, top, total, acc, groups, HEADS, D, WIDTH, SPLIT)


@triton.jit(do_not_specialize=RUN_TIME)
def read_kernel(
    q, out, lse, k_store, v_store, chosen, items, first, sink, share, given, base, capacity, cu_seqlens, pasts, scale,
    cap, sink_logits, blocks, groups, per_piece, tokens, width, begin, room, q_token, q_head, HEADS: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, SPLIT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute one piece of a slab in which a row chooses, of tokens `begin` to `begin + width`; see `decode_kernel`.

    Args:
        chosen: The fine pages that rows have chosen, by their numbers in the store, int32 [rows, groups, room].
    """
    pair = tl.load(items + 2 * tl.program_id(0))
    piece = tl.load(items + 2 * tl.program_id(0) + 1)
    sequence, group = pair // groups, pair % groups
    start = tl.load(cu_seqlens + sequence)
    count = tl.load(cu_seqlens + sequence + 1) - start
    if count == 0:
        return
    past = tl.load(pasts + sequence).to(tl.int32)
    sink_blocks = tl.load(sink + group) // BLOCK
    if SPLIT:
        out += piece.to(tl.int64) * tokens * groups * HEADS * D
        lse += piece.to(tl.int64) * tokens * groups * HEADS
    if reads_all(
        first + group * blocks, tl.load(share + group), tl.load(given + group), sink_blocks, past, count, D
    ):  # fmt: skip
        return
    most = pieces_of(capacity, pair, per_piece)
    for turn in range(begin, tl.minimum(begin + width, count)):
        row = sequence * width + turn - begin
        _, token, where, start_page, counts = find_row(
            row, group, cu_seqlens, pasts, first, sink, share, given, base, capacity, blocks, groups, width, begin, D
        )
        mine = chosen + (row.to(tl.int64) * groups + group) * room
        attend_pages(
            q, out, lse, k_store, v_store, mine, scale, cap, sink_logits, token, piece, most, group, where, start_page,
            counts, groups, q_token, q_head, HEADS, D, WIDTH, 16, SPLIT, PRECISION,
        )  # fmt: skip


def launch_read(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, batch: Packed, seen: Visibility, reading: Reading, store: Store,
    softmax: Softmax,
) -> None:  # fmt: skip
    """Append the new tokens, and fill `out` [tokens, query_heads, D] (contiguous); see `moa.kernels.call.Read`."""
    append(store, k, v, batch=batch, seen=seen)
    tokens, heads, dim = q.shape
    groups, sequences, device = k.shape[1], len(batch.past), q.device
    per_group, (items, size, most) = heads // groups, pieces(store)
    parts, lse = room(out, store)

    lines = triton.cdiv(max(run.slots for run in store.runs), span.BLOCK * AT_ONCE)
    coarse = lines * AT_ONCE * INSIDE  # pages of the largest slab, and some
    fine = INSIDE * coarse
    width = WORK // (sequences * groups * fine * 4 * (per_group + 2)) or 1
    width = min(width, batch.max_seqlen)
    rows = sequences * width
    scores = torch.empty((rows, groups, fine, per_group), dtype=torch.float32, device=device)
    tops, totals = (
        torch.empty((rows, groups, INSIDE * lines, per_group), dtype=torch.float32, device=device) for _ in range(2)
    )
    opened, chosen = (torch.empty((rows, groups, n), dtype=torch.int32, device=device) for n in (coarse, fine))
    tables = (*seen, *reading, store.base, store.capacity, batch.cu_seqlens, batch.past)
    up = triton.next_power_of_2(per_group)
    pages = {"HEADS": per_group, "D": dim, "AT_ONCE": AT_ONCE}
    sizes = seen.first.shape[1], groups
    with on_device(q):
        shape = tiles_of(q, k, batch)
        attend_pieces(
            q, k, v, parts, lse, batch=batch, seen=seen, store=store, softmax=softmax, write=False, tiles=shape,
            reading=reading,
        )  # fmt: skip
        for begin in range(0, batch.max_seqlen, width):
            for listed, found, n, some in ((None, opened, coarse, lines), (opened, chosen, fine, INSIDE * lines)):
                where = (*sizes, width, begin, n, some)
                page_scores_kernel[(some, rows, groups)](
                    q, store.summaries, listed, scores, tops, totals, *tables, softmax.scale, *where, *q.stride()[:2],
                    **pages, UP=max(16, up), WIDTH=max(16, triton.next_power_of_2(dim // 4)), PRECISION=shape.precision,
                    num_warps=4,
                )  # fmt: skip
                page_choice_kernel[(rows, groups)](
                    scores, tops, totals, listed, found, *tables, *where, **pages, UP=up, SIZE=choice_size(up),
                    num_warps=8,
                )  # fmt: skip
            read_kernel[(len(items),)](
                q, parts, lse, store.k, store.v, chosen, items, *tables, *softmax, *sizes, size, tokens, width, begin,
                fine, *q.stride()[:2], HEADS=per_group, D=dim, WIDTH=shape.width, SPLIT=most > 1,
                PRECISION=shape.precision, num_warps=shape.warps, num_stages=shape.stages,
            )  # fmt: skip
        if most > 1:
            join(parts, lse, out, batch=batch, seen=seen, reading=reading, store=store, groups=groups)
