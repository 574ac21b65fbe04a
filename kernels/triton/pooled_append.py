"""Write new keys and values to their slots in pools (`pooled.py`): each is read and written once."""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, RUN_TIME, load_rows
from moa.kernels.triton.pooled_blocks import address_of, rows_at

APPENDED = 16
"""Tokens that a program writes."""


@triton.jit(do_not_specialize=RUN_TIME)
def pooled_append_kernel(
    k, v, pools, slots, tokens, step, k_token, k_head, v_token, v_head, D: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write ROWS new tokens of one KV head to their slots."""
    group = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slot = tl.load(tl.load(slots + group).to(tl.pointer_type(tl.int64)) + token, mask=token < tokens, other=-1)
    there = slot >= 0
    column = tl.arange(0, WIDTH)
    at = rows_at(address_of(pools, group, k), slot // BLOCK, slot % BLOCK, step, D)[:, None] + column[None, :]
    mask = there[:, None] & (column < D)[None, :]
    tl.store(at, load_rows(k + group * k_head + token * k_token, there, D, WIDTH, True), mask=mask)
    tl.store(at + D, load_rows(v + group * v_head + token * v_token, there, D, WIDTH, True), mask=mask)
