"""First sweep of the influence backward (`influence.py`), by tiles of rows: dQ, D, and the harm of every cut."""

import triton
import triton.language as tl

from moa.kernels import influence
from moa.kernels.triton.common import BLOCK, LOG2E, RUN_TIME, capped, dot, load_rows, uncapped

NO_MASS = tl.constexpr(influence.NO_MASS)

UNSPECIALISED = [*RUN_TIME, "per_bin", "edges", "sink_count", "most_sinks"]


@triton.jit
def weigh(q, dout, k, v, lse, scale, cap, seen, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Return A and dP of a tile [rows, keys]; `lse` holds log2 of each row's denominator."""
    scores, tanh = capped(dot(q, tl.trans(k), None, PRECISION) * (scale * LOG2E), cap)
    a = tl.exp2(scores - lse[:, None])
    if MASKED:
        a = tl.where(seen, a, 0.0)
    return a, dot(dout, tl.trans(v), None, PRECISION), tanh


@triton.jit
def sunk_weight(sink_logits, head, live, size):
    """Return the weight of the learned sink in each row, whose head is `head` and log2 of the softmax sum `size`."""
    return tl.exp2(tl.load(sink_logits + head, mask=live, other=0.0) * LOG2E - size)


@triton.jit
def harms(mass, effect, sink_mass, sink_effect, delta, POSITIONS: tl.constexpr, HEADS_UP: tl.constexpr,
          SINKS_UP: tl.constexpr, SQUARED: tl.constexpr):  # fmt: skip
    """Return the harm of one cut under each sink [SINKS_UP]; the group's heads are summed before squaring."""
    kept = mass[:, None] + sink_mass
    mean = tl.where(kept > NO_MASS, (effect[:, None] + sink_effect) / tl.maximum(kept, NO_MASS), 0.0)
    change = tl.sum(tl.reshape(mean - delta[:, None], (POSITIONS, HEADS_UP, SINKS_UP)), 1)
    return tl.sum(change * change if SQUARED else change, 0)


@triton.jit
def load_tile(
    q, dout, lse, tile, group, tokens, groups, q_head, q_token, dout_head, dout_token, HEADS: tl.constexpr,
    HEADS_UP: tl.constexpr, POSITIONS: tl.constexpr, BLOCK_M: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Return of rows [BLOCK_M]: position, head, whether they exist, q and dO [_, WIDTH], log2 of the softmax sum."""
    row = tl.arange(0, BLOCK_M)
    position, head = tile * POSITIONS + row // HEADS_UP, row % HEADS_UP
    live = (position < tokens) & (head < HEADS)
    where, head = position.to(tl.int64), (group * HEADS + head).to(tl.int64)
    tile_q = load_rows(q + where * q_token + head * q_head, live, D, WIDTH, True)
    tile_dout = load_rows(dout + where * dout_token + head * dout_head, live, D, WIDTH, True)
    size = tl.load(lse + where * (groups * HEADS) + head, mask=live, other=float("inf"))
    return where, head, live, tile_q, tile_dout, size


@triton.jit
def row_sums(
    key, exists, seen, tile_q, tile_dout, k, v, size, scale, cap, k_token, v_token, MASKED: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the sums of A and of A dP over the keys at positions `key` (int64 [64]): two [rows]."""
    tile_k = load_rows(k + key * k_token, exists, D, WIDTH, MASKED)  # [64, WIDTH]
    tile_v = load_rows(v + key * v_token, exists, D, WIDTH, MASKED)
    a, dp, _ = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, cap, seen, MASKED, PRECISION)
    return tl.sum(a, 1), tl.sum(a * dp, 1)


@triton.jit(do_not_specialize=UNSPECIALISED)
def gradient_q_kernel(
    q, k, v, out, dout, lse, dq, delta, cuts, sinks, scale, cap, sink_logits, tokens, groups, tiles, edges,
    per_bin, sink_count, most_sinks, q_head, q_token, k_head, k_token, v_head, v_token, out_head, out_token, dout_head,
    dout_token, HEADS: tl.constexpr, HEADS_UP: tl.constexpr, POSITIONS: tl.constexpr, SINKS_UP: tl.constexpr,
    SQUARED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dQ, D and the cuts' harms of POSITIONS * HEADS_UP rows; `cuts` is [tiles, groups, sinks, edges]."""
    group = tl.program_id(0) % groups
    tile = tiles - 1 - tl.program_id(0) // groups  # late rows have the most keys
    position, head, live, tile_q, tile_dout, size = load_tile(
        q, dout, lse, tile, group, tokens, groups, q_head, q_token, dout_head, dout_token, HEADS, HEADS_UP, POSITIONS,
        BLOCK_M, D, WIDTH,
    )  # fmt: skip
    tile_out = load_rows(out + position * out_token + head * out_head, live, D, WIDTH, True)
    d = tl.sum(tile_dout.to(tl.float32) * tile_out.to(tl.float32), 1)
    tl.store(delta + position * (groups * HEADS) + head, d, mask=live)

    if cap is not None:
        cap *= LOG2E
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    cuts += (tile.to(tl.int64) * groups + group) * sink_count * edges
    which = tl.arange(0, SINKS_UP)
    sink = tl.load(sinks + which, mask=which < sink_count, other=1 << 30)  # lanes beyond the sinks cut nothing
    lane = tl.arange(0, BLOCK)
    diagonal = tile * POSITIONS // BLOCK
    sink_mass = tl.zeros([BLOCK_M, SINKS_UP], tl.float32)
    sink_effect = tl.zeros([BLOCK_M, SINKS_UP], tl.float32)
    for block in tl.range(0, tl.minimum(most_sinks, diagonal), num_stages=1):
        key = (lane + block * BLOCK).to(tl.int64)
        mass, effect = row_sums(
            key, live, live, tile_q, tile_dout, k, v, size, scale, cap, k_token, v_token, False, D, WIDTH, PRECISION
        )
        inside = (sink > block * BLOCK)[None, :]
        sink_mass += tl.where(inside, mass[:, None], 0.0)
        sink_effect += tl.where(inside, effect[:, None], 0.0)

    at = diagonal * BLOCK + lane
    exists = at < tokens
    tile_k = load_rows(k + at.to(tl.int64) * k_token, exists, D, WIDTH, True)
    tile_v = load_rows(v + at.to(tl.int64) * v_token, exists, D, WIDTH, True)
    seen = at[None, :] <= position[:, None]
    a, dp, tanh = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, cap, seen, True, PRECISION)
    mass, effect = tl.sum(a, 1), tl.sum(a * dp, 1)
    if sink_logits is not None:
        mass += sunk_weight(sink_logits, head, live, size)
    harm = harms(mass, effect, sink_mass, sink_effect, d, POSITIONS, HEADS_UP, SINKS_UP, SQUARED)
    cut = tl.where(diagonal % per_bin == 0, diagonal * BLOCK, 0) > sink
    tl.store(cuts + which * edges + diagonal // per_bin, harm, mask=cut)
    ds = uncapped(a * (dp - d[:, None]), tanh, cap)
    acc = dot(ds.to(k.dtype.element_ty), tile_k, tl.zeros([BLOCK_M, WIDTH], tl.float32), PRECISION)

    for i in tl.range(0, diagonal):
        block = diagonal - 1 - i
        key = (lane + block * BLOCK).to(tl.int64)
        tile_k = load_rows(k + key * k_token, live, D, WIDTH, False)
        tile_v = load_rows(v + key * v_token, live, D, WIDTH, False)
        a, dp, tanh = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, cap, live, False, PRECISION)
        mass += tl.sum(a, 1)
        effect += tl.sum(a * dp, 1)
        harm = harms(mass, effect, sink_mass, sink_effect, d, POSITIONS, HEADS_UP, SINKS_UP, SQUARED)
        cut = tl.where(block % per_bin == 0, block * BLOCK, 0) > sink
        tl.store(cuts + which * edges + block // per_bin, harm, mask=cut)
        ds = uncapped(a * (dp - d[:, None]), tanh, cap)
        acc = dot(ds.to(tile_k.dtype), tile_k, acc, PRECISION)

    column = tl.arange(0, WIDTH)
    target = (head * tokens + position) * D
    result = (acc * scale).to(dq.dtype.element_ty)
    tl.store(dq + target[:, None] + column[None, :], result, mask=live[:, None] & (column < D)[None, :])
