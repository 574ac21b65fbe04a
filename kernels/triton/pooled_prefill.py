"""Several new tokens of sequences over pools (`pooled.py`): a prompt, or a chunk of one.

As in `prefill.py`, a program owns BLOCK_M rows of one (sequence, group), and the longest work starts first.
"""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, RUN_TIME, find_sequence, in_base_2, load_rows, rows_of_tile
from moa.kernels.triton.decode import write_rows
from moa.kernels.triton.pooled_blocks import address_of, blocks_of_rows, sweep, table_of
from moa.kernels.triton.prefill import by_reach


@triton.jit(do_not_specialize=RUN_TIME)
def pooled_prefill_kernel(
    q, out, pools, tables, first, sink, cu_seqlens, lengths, scale, blocks, sequences, groups, tiles, step, width,
    q_token, q_head, HEADS: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the rows of one tile; sequences with one new token are left to `pooled_decode_kernel`."""
    program = tl.program_id(0)
    group = by_reach(first, blocks, groups, program // tiles, GROUPS)
    sequence, tile = find_sequence(cu_seqlens, sequences, tiles - 1 - program % tiles, HEADS, BLOCK_M)
    start = tl.load(cu_seqlens + sequence)
    new = tl.load(cu_seqlens + sequence + 1) - start
    if (new == 1) | (tile * BLOCK_M >= new * HEADS):
        return
    past = tl.load(lengths + sequence) - new
    live, token, head, position, low, high = rows_of_tile(tile, start, new * HEADS, past, group, HEADS, BLOCK_M)
    first += group * blocks
    sink_blocks = tl.load(sink + group) // BLOCK
    _, _, _, _, _, end = blocks_of_rows(first, sink_blocks, low, high)
    tile_q = load_rows(q + token.to(tl.int64) * q_token + head.to(tl.int64) * q_head, live, D, WIDTH, True)
    pool, table = address_of(pools, group, q), table_of(tables, group, sequence, width)
    scale, _ = in_base_2(scale, None)
    top, total, acc = sweep(
        tile_q, position, low, high, pool, table, first, sink_blocks, 0, end, step, scale, BLOCK_M, D, WIDTH, PRECISION
    )
    write_rows(out, out, token, head, live, top, total, acc, groups, HEADS, D, WIDTH, False)
