"""Influence: the backward pass of causal attention with the sums of every cut in the same sweep.

The fused form of `moa.kernels.influence.influence_backward` under the estimators `fisher` and `effect`. With A the
attention weights, dP_ij = dO_i . V_j and D_i = dO_i . O_i, a cut that keeps keys K changes a row's output, to first
order, by

    delta_i = sum over the group's heads of (sum_K A dP) / (sum_K A) - D_i

and its harm is the sum over rows of delta_i^2, or for `effect` of delta_i.

Algorithm. As in flash attention's backward pass (arXiv 2205.14135, algorithm 4), nothing of size N x N is kept:

1. `gradient_q_kernel`: a program owns a few positions under all heads of a group and walks the key blocks from the
   diagonal down to 0. A and dP of a tile give dQ, and their row sums extend the running sums over all keys from this
   block on: exactly what the cut at this block keeps besides the sink, whose own sums a short first loop took. So each
   block yields the harm of one cut for one more pair of row sums. Programs write to separate slots, summed afterwards.
2. `gradient_kv_kernel`: a program owns 64 keys of a group and walks the rows below them, all heads in turn, for dK and
   dV. No atomics: the same input gives the same bits.

Work. 7 products of 2 * D flops per visible (row, key), as any backward pass that keeps only the softmax denominator in
two sweeps; the cuts add two row sums per tile. Extra memory: sinks * groups * edges floats per tile of positions,
linear in N since edges <= 128.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moa.kernels import influence
from moa.kernels.triton.common import BLOCK, LOG2E, RUN_TIME, dot, load_rows, on_device, require_supported
from moa.kernels.triton.prefill import prefill
from moa.kernels.triton.tiles import Tiles, gradient_kv_tiles, gradient_q_tiles

NO_MASS = tl.constexpr(influence.NO_MASS)

UNSPECIALISED = [*RUN_TIME, "per_bin", "edges", "sink_count", "most_sinks"]


@triton.jit
def weigh(q, dout, k, v, lse, scale, seen, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """A and dP of a tile [rows, keys]; `lse` holds log2 of each row's denominator."""
    a = tl.exp2(dot(q, tl.trans(k), None, PRECISION) * (scale * LOG2E) - lse[:, None])
    if MASKED:
        a = tl.where(seen, a, 0.0)
    return a, dot(dout, tl.trans(v), None, PRECISION)


@triton.jit
def harms(mass, effect, sink_mass, sink_effect, delta, POSITIONS: tl.constexpr, HEADS_UP: tl.constexpr,
          SINKS_UP: tl.constexpr, SQUARED: tl.constexpr):  # fmt: skip
    """Harm of one cut under each sink [SINKS_UP], the group's heads summed before squaring."""
    kept = mass[:, None] + sink_mass
    mean = tl.where(kept > NO_MASS, (effect[:, None] + sink_effect) / tl.maximum(kept, NO_MASS), 0.0)
    change = tl.sum(tl.reshape(mean - delta[:, None], (POSITIONS, HEADS_UP, SINKS_UP)), 1)
    return tl.sum(change * change if SQUARED else change, 0)


@triton.jit(do_not_specialize=UNSPECIALISED)
def gradient_q_kernel(
    q, k, v, out, dout, lse, dq, delta, cuts, sinks, scale, tokens, groups, tiles, edges, per_bin, sink_count,
    most_sinks, q_head, q_token, k_head, k_token, v_head, v_token, out_head, out_token, dout_head, dout_token,
    HEADS: tl.constexpr, HEADS_UP: tl.constexpr, POSITIONS: tl.constexpr, SINKS_UP: tl.constexpr,
    SQUARED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dQ, D and the cuts' harms of BLOCK_M rows, POSITIONS times HEADS_UP; `cuts` is [tiles, groups, sinks, edges]."""
    group = tl.program_id(0) % groups
    tile = tiles - 1 - tl.program_id(0) // groups  # late rows have the most keys
    row = tl.arange(0, BLOCK_M)
    position, head = tile * POSITIONS + row // HEADS_UP, row % HEADS_UP
    live = (position < tokens) & (head < HEADS)
    head = (group * HEADS + head).to(tl.int64)
    where = position.to(tl.int64)
    tile_q = load_rows(q + where * q_token + head * q_head, live, D, WIDTH, True)
    tile_dout = load_rows(dout + where * dout_token + head * dout_head, live, D, WIDTH, True)
    tile_out = load_rows(out + where * out_token + head * out_head, live, D, WIDTH, True)
    size = tl.load(lse + where * (groups * HEADS) + head, mask=live, other=float("inf"))
    d = tl.sum(tile_dout.to(tl.float32) * tile_out.to(tl.float32), 1)
    tl.store(delta + where * (groups * HEADS) + head, d, mask=live)

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
        tile_k = load_rows(k + key * k_token, live, D, WIDTH, False)
        tile_v = load_rows(v + key * v_token, live, D, WIDTH, False)
        a, dp = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, live, False, PRECISION)
        inside = (sink > block * BLOCK)[None, :]
        sink_mass += tl.where(inside, tl.sum(a, 1)[:, None], 0.0)
        sink_effect += tl.where(inside, tl.sum(a * dp, 1)[:, None], 0.0)

    at = diagonal * BLOCK + lane
    exists = at < tokens
    tile_k = load_rows(k + at.to(tl.int64) * k_token, exists, D, WIDTH, True)
    tile_v = load_rows(v + at.to(tl.int64) * v_token, exists, D, WIDTH, True)
    a, dp = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, at[None, :] <= position[:, None], True, PRECISION)
    mass, effect = tl.sum(a, 1), tl.sum(a * dp, 1)
    harm = harms(mass, effect, sink_mass, sink_effect, d, POSITIONS, HEADS_UP, SINKS_UP, SQUARED)
    cut = tl.where(diagonal % per_bin == 0, diagonal * BLOCK, 0) > sink
    tl.store(cuts + which * edges + diagonal // per_bin, harm, mask=cut)
    ds = (a * (dp - d[:, None])).to(k.dtype.element_ty)
    acc = dot(ds, tile_k, tl.zeros([BLOCK_M, WIDTH], tl.float32), PRECISION)

    for i in tl.range(0, diagonal):
        block = diagonal - 1 - i
        key = (lane + block * BLOCK).to(tl.int64)
        tile_k = load_rows(k + key * k_token, live, D, WIDTH, False)
        tile_v = load_rows(v + key * v_token, live, D, WIDTH, False)
        a, dp = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, live, False, PRECISION)
        mass += tl.sum(a, 1)
        effect += tl.sum(a * dp, 1)
        harm = harms(mass, effect, sink_mass, sink_effect, d, POSITIONS, HEADS_UP, SINKS_UP, SQUARED)
        cut = tl.where(block % per_bin == 0, block * BLOCK, 0) > sink
        tl.store(cuts + which * edges + block // per_bin, harm, mask=cut)
        acc = dot((a * (dp - d[:, None])).to(tile_k.dtype), tile_k, acc, PRECISION)

    column = tl.arange(0, WIDTH)
    target = (head * tokens + position) * D
    result = (acc * scale).to(dq.dtype.element_ty)
    tl.store(dq + target[:, None] + column[None, :], result, mask=live[:, None] & (column < D)[None, :])


@triton.jit
def add_rows(
    row, tile_k, tile_v, at, acc_k, acc_v, q, dout, lse, delta, scale, tokens, groups, group, q_head, q_token,
    dout_head, dout_token, HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What rows `row`, flat (position, head) pairs, add to dK and dV of the keys `at`."""
    live = row < tokens * HEADS
    position, head = row // HEADS, (group * HEADS + row % HEADS).to(tl.int64)
    where = position.to(tl.int64)
    tile_q = load_rows(q + where * q_token + head * q_head, live, D, WIDTH, True)
    tile_dout = load_rows(dout + where * dout_token + head * dout_head, live, D, WIDTH, True)
    size = tl.load(lse + where * (groups * HEADS) + head, mask=live, other=float("inf"))
    d = tl.load(delta + where * (groups * HEADS) + head, mask=live, other=0.0)
    a = tl.exp2(dot(tile_k, tl.trans(tile_q), None, PRECISION) * (scale * LOG2E) - size[None, :])
    if MASKED:
        a = tl.where(at[:, None] <= position[None, :], a, 0.0)
    acc_v = dot(a.to(tile_dout.dtype), tile_dout, acc_v, PRECISION)
    ds = a * (dot(tile_v, tl.trans(tile_dout), None, PRECISION) - d[None, :])
    return dot(ds.to(tile_q.dtype), tile_q, acc_k, PRECISION), acc_v


@triton.jit(do_not_specialize=UNSPECIALISED)
def gradient_kv_kernel(
    q, k, v, dout, lse, delta, dk, dv, scale, tokens, groups,
    q_head, q_token, k_head, k_token, v_head, v_token, dout_head, dout_token,
    HEADS: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dK and dV of 64 keys of one group: see the module."""
    group = (tl.program_id(0) % groups).to(tl.int64)
    block = tl.program_id(0) // groups  # early keys have the most rows
    at = block * BLOCK + tl.arange(0, BLOCK)
    exists = at < tokens
    tile_k = load_rows(k + group * k_head + at.to(tl.int64) * k_token, exists, D, WIDTH, True)
    tile_v = load_rows(v + group * v_head + at.to(tl.int64) * v_token, exists, D, WIDTH, True)
    acc_k = tl.zeros([BLOCK, WIDTH], tl.float32)
    acc_v = tl.zeros([BLOCK, WIDTH], tl.float32)
    lane = tl.arange(0, BLOCK_M)
    begin, below, end = block * BLOCK * HEADS, (block + 1) * BLOCK * HEADS, tokens * HEADS
    for row in tl.range(begin, tl.minimum(below, end), BLOCK_M, num_stages=1):
        acc_k, acc_v = add_rows(
            row + lane, tile_k, tile_v, at, acc_k, acc_v, q, dout, lse, delta, scale, tokens, groups, group, q_head,
            q_token, dout_head, dout_token, HEADS, D, WIDTH, True, PRECISION,
        )  # fmt: skip
    for row in tl.range(below, end, BLOCK_M):
        acc_k, acc_v = add_rows(
            row + lane, tile_k, tile_v, at, acc_k, acc_v, q, dout, lse, delta, scale, tokens, groups, group, q_head,
            q_token, dout_head, dout_token, HEADS, D, WIDTH, False, PRECISION,
        )  # fmt: skip
    column = tl.arange(0, WIDTH)
    target = ((group * tokens + at) * D)[:, None] + column[None, :]
    mask = exists[:, None] & (column < D)[None, :]
    tl.store(dk + target, (acc_k * scale).to(dk.dtype.element_ty), mask=mask)
    tl.store(dv + target, acc_v.to(dv.dtype.element_ty), mask=mask)


def forward(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> tuple[Tensor, Tensor]:
    """Dense causal attention of one sequence, and what its backward pass needs.

    Args:
        q: Queries [query_heads, N, D].
        k: Keys [kv_heads, N, D].
        v: Values [kv_heads, N, D].
        scale: Softmax scale.

    Returns:
        The output [query_heads, N, D], and float32 [N, query_heads]: log2 of each row's softmax denominator.
    """
    require_supported(q, k, v)
    heads, n, dim = q.shape
    out = torch.empty((n, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((n, heads), dtype=torch.float32, device=q.device)
    everything = torch.zeros((len(k), -(-n // BLOCK.value)), dtype=torch.int32, device=q.device)
    prefill(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), out, first=everything,
        sink=everything[:, 0].contiguous(),
        starts=torch.arange(2, dtype=torch.int32, device=q.device) * n,
        lengths=torch.zeros(1, dtype=torch.int64, device=q.device), scale=scale, lse=lse,
    )  # fmt: skip
    return out.transpose(0, 1), lse


def influence_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, *, scale: float, sinks: Sequence[int],
    bin_size: int, squared: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of causal attention, and the summed harm of every cut.

    Args:
        q, k, v, scale: As in `forward`; the last dimension is contiguous, here and below.
        out, lse: What `forward` gave.
        dout: Gradient at the output [query_heads, N, D].
        sinks: Sink sizes to measure, tokens, multiples of 64.
        bin_size: Tokens per row and edge bin, a multiple of 64.
        squared: Whether harm is the squared effect (`fisher`) or the effect itself (`effect`).

    Returns:
        As `moa.kernels.influence.influence_backward`.
    """
    require_supported(q, k, v, out, dout)
    heads, n, dim = q.shape
    groups, per_group = len(k), heads // len(k)
    with on_device(q):
        shape, shape_kv = gradient_q_tiles(dim, q.dtype, per_group), gradient_kv_tiles(dim, q.dtype)
    heads_up = triton.next_power_of_2(per_group)
    positions = shape.block_m // heads_up
    bins = -(-n // bin_size)
    count = bins * (bin_size // positions)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    delta = torch.empty((n, heads), dtype=torch.float32, device=q.device)
    cuts = torch.zeros((count, groups, len(sinks), bins), dtype=torch.float32, device=q.device)
    used = -(-n // positions)
    sizes = torch.tensor(sinks, dtype=torch.int32).to(q.device, non_blocking=True)
    strides = [s for x in (q, k, v, out, dout) for s in x.stride()[:2]]
    with on_device(q):
        gradient_q_kernel[(used * groups,)](
            q, k, v, out, dout, lse, dq, delta, cuts, sizes, scale, n, groups, used, bins, bin_size // BLOCK.value,
            len(sinks), max(sinks) // BLOCK.value, *strides,
            HEADS=per_group, HEADS_UP=heads_up, POSITIONS=positions, SINKS_UP=triton.next_power_of_2(len(sinks)),
            SQUARED=squared, **_meta(shape, dim),
        )  # fmt: skip
        gradient_kv_kernel[(-(-n // BLOCK.value) * groups,)](
            q, k, v, dout, lse, delta, dk, dv, scale, n, groups, *strides[:6], *strides[8:], HEADS=per_group,
            **_meta(shape_kv, dim),
        )  # fmt: skip
    table = cuts.unflatten(0, (bins, -1)).sum(1)  # [rows, kv_heads, sinks, edges]
    return dq, dk, dv, table.permute(2, 1, 0, 3).contiguous()


def _meta(shape: Tiles, dim: int) -> dict[str, Any]:
    return {
        "D": dim, "WIDTH": shape.width, "BLOCK_M": shape.block_m, "PRECISION": shape.precision,
        "num_warps": shape.warps, "num_stages": shape.stages,
    }  # fmt: skip
