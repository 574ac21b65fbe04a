"""Second sweep of the influence backward (`influence.py`): dK and dV of some keys, one query head after another."""

import triton
import triton.language as tl

from moa.kernels.triton.common import LOG2E, RUN_TIME, capped, dot, load_rows, uncapped


@triton.jit
def add_rows(
    position, tile_k, tile_v, at, acc_k, acc_v, q, dout, lse, delta, scale, cap, tokens, heads, q_token, dout_token,
    D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return dK and dV of the keys `at` with what the rows of one head at `position` add to them."""
    live = position < tokens
    where = position.to(tl.int64)
    tile_q = load_rows(q + where * q_token, live, D, WIDTH, True)
    tile_dout = load_rows(dout + where * dout_token, live, D, WIDTH, True)
    size = tl.load(lse + where * heads, mask=live, other=float("inf"))
    d = tl.load(delta + where * heads, mask=live, other=0.0)
    scores, tanh = capped(dot(tile_k, tl.trans(tile_q), None, PRECISION) * (scale * LOG2E), cap)
    a = tl.exp2(scores - size[None, :])
    if MASKED:
        a = tl.where(at[:, None] <= position[None, :], a, 0.0)
    acc_v = dot(a.to(tile_dout.dtype), tile_dout, acc_v, PRECISION)
    ds = uncapped(a * (dot(tile_v, tl.trans(tile_dout), None, PRECISION) - d[None, :]), tanh, cap)
    return dot(ds.to(tile_q.dtype), tile_q, acc_k, PRECISION), acc_v


@triton.jit(do_not_specialize=RUN_TIME)
def gradient_kv_kernel(
    q, k, v, dout, lse, delta, dk, dv, scale, cap, tokens, groups,
    q_head, q_token, k_head, k_token, v_head, v_token, dout_head, dout_token,
    HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dK and dV of KEYS keys of one group."""
    group = (tl.program_id(0) % groups).to(tl.int64)
    if cap is not None:
        cap *= LOG2E
    begin = tl.program_id(0) // groups * KEYS  # early keys have the most rows
    at = begin + tl.arange(0, KEYS)
    exists = at < tokens
    tile_k = load_rows(k + group * k_head + at.to(tl.int64) * k_token, exists, D, WIDTH, True)
    tile_v = load_rows(v + group * v_head + at.to(tl.int64) * v_token, exists, D, WIDTH, True)
    acc_k = tl.zeros([KEYS, WIDTH], tl.float32)
    acc_v = tl.zeros([KEYS, WIDTH], tl.float32)
    lane = tl.arange(0, BLOCK_M)
    heads = groups * HEADS
    own, below = tl.cdiv(tl.minimum(KEYS, tokens - begin), BLOCK_M), begin + KEYS
    for i in tl.range(0, own * HEADS, num_stages=1):
        head = group * HEADS + i // own
        acc_k, acc_v = add_rows(
            begin + i % own * BLOCK_M + lane, tile_k, tile_v, at, acc_k, acc_v, q + head * q_head,
            dout + head * dout_head, lse + head, delta + head, scale, cap, tokens, heads, q_token, dout_token, D, WIDTH,
            True, PRECISION,
        )  # fmt: skip
    later = tl.cdiv(tl.maximum(tokens - below, 0), BLOCK_M)
    for i in tl.range(0, later * HEADS):
        head = group * HEADS + i // later
        acc_k, acc_v = add_rows(
            below + i % later * BLOCK_M + lane, tile_k, tile_v, at, acc_k, acc_v, q + head * q_head,
            dout + head * dout_head, lse + head, delta + head, scale, cap, tokens, heads, q_token, dout_token, D, WIDTH,
            False, PRECISION,
        )  # fmt: skip
    column = tl.arange(0, WIDTH)
    target = ((group * tokens + at) * D)[:, None] + column[None, :]
    mask = exists[:, None] & (column < D)[None, :]
    tl.store(dk + target, (acc_k * scale).to(dk.dtype.element_ty), mask=mask)
    tl.store(dv + target, acc_v.to(dv.dtype.element_ty), mask=mask)
