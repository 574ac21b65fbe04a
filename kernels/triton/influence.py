"""Influence: the backward pass of causal attention with the sums of every cut in the same sweep.

The fused form of `moa.kernels.influence.influence_backward` under the estimators `fisher` and `effect`. With A the
attention weights, dP_ij = dO_i . V_j and D_i = dO_i . O_i, a cut that keeps keys K changes a row's output, to first
order, by

    delta_i = sum over the group's heads of (sum_K A dP) / (sum_K A) - D_i

and its harm is the sum over rows of delta_i^2, or for `effect` of delta_i. Every cut keeps a learned sink, whose weight
adds to the sum of A alone.

Algorithm. As in flash attention's backward pass (arXiv 2205.14135, algorithm 4), nothing of size N x N is kept:

1. `gradient_q_kernel`: a program owns a few positions under all heads of a group and walks the key blocks from the
   diagonal down to 0. A and dP of a tile give dQ, and their row sums extend the running sums over all keys from this
   block on: exactly what the cut at this block keeps besides the sink, whose own sums a short first loop took. So each
   block yields the harm of one cut for one more pair of row sums. Programs write to separate slots, summed afterwards.
2. `gradient_kv_kernel`: a program owns 32 or 64 keys of a group and walks the rows below them, all heads in turn, for
   dK and dV. No atomics: the same input gives the same bits.
3. `changing_sinks_kernel`, where sinks of other keys than the first are measured: as 1 without dQ, but such a sink
   holds other keys at each edge, gathered there for their own sums.

Work. 7 products of 2 * D flops per visible (row, key), as any backward pass that keeps only the softmax denominator in
two sweeps; the cuts add two row sums per tile. Sinks of other keys add 2 products, and 2 more per key that one holds at
an edge, which is 2 for all keys where sinks and bins are 64. Extra memory: sinks * groups * edges floats per tile of
positions, linear in N since edges <= 128.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.sink_contents import Sink
from moa.kernels.softmax import Softmax
from moa.kernels.triton.changing_sinks import changing_sinks_kernel
from moa.kernels.triton.common import BLOCK, DTYPES, on_device, require_supported
from moa.kernels.triton.gradient_kv import gradient_kv_kernel
from moa.kernels.triton.gradient_q import gradient_q_kernel
from moa.kernels.triton.prefill import launch_prefill
from moa.kernels.triton.tiles import WIDEST_INFLUENCE, Tiles, gradient_keys, gradient_kv_tiles, gradient_q_tiles


def takes(q: Tensor) -> bool:
    """Return whether the kernels take queries of this dtype and head size; others are measured without them."""
    return q.dtype in DTYPES and q.shape[-1] <= WIDEST_INFLUENCE


def forward(q: Tensor, k: Tensor, v: Tensor, *, softmax: Softmax) -> tuple[Tensor, Tensor]:
    """Return dense causal attention of one sequence, and what its backward pass needs.

    Args:
        q: Queries [query_heads, N, D].
        k: Keys [kv_heads, N, D].
        v: Values [kv_heads, N, D].
        softmax: How scores become weights.

    Returns:
        The output [query_heads, N, D], and float32 [N, query_heads]: log2 of each row's softmax denominator.
    """
    require_supported(q, k, v)
    heads, n, dim = q.shape
    out = torch.empty((n, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((n, heads), dtype=torch.float32, device=q.device)
    everything = torch.zeros((len(k), -(-n // BLOCK.value)), dtype=torch.int32, device=q.device)
    cu_seqlens = torch.arange(2, dtype=torch.int32, device=q.device) * n
    launch_prefill(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), out,
        batch=Packed(cu_seqlens, torch.zeros(1, dtype=torch.int64, device=q.device), n),
        seen=Visibility(everything, everything[:, 0].contiguous()), softmax=softmax, lse=lse,
    )  # fmt: skip
    return out.transpose(0, 1), lse


def influence_backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, *, softmax: Softmax, sinks: Sequence[Sink],
    bin_size: int, squared: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of causal attention, and the summed harm of every cut.

    Args:
        q, k, v, softmax: As in `forward`; the last dimension is contiguous, here and below.
        out, lse: What `forward` gave.
        dout: Gradient at the output [query_heads, N, D].
        sinks: Sinks to measure.
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
    static = [sink.slots for sink in sinks if sink.history is None] or [BLOCK.value]  # `gradient_q_kernel` needs one
    changing = [sink for sink in sinks if sink.history is not None]
    cuts, changing_cuts = (
        torch.zeros((count, groups, len(x), bins), dtype=torch.float32, device=q.device) for x in (static, changing)
    )
    used = -(-n // positions)
    sizes, changing_sizes = (
        torch.tensor(x, dtype=torch.int32).to(q.device, non_blocking=True)
        for x in (static, [sink.slots for sink in changing])
    )
    strides = [s for x in (q, k, v, out, dout) for s in x.stride()[:2]]
    counts = n, groups, used, bins, bin_size // BLOCK.value
    rows = {"HEADS": per_group, "HEADS_UP": heads_up, "POSITIONS": positions, "SQUARED": squared, **_meta(shape, dim)}
    with on_device(q):
        gradient_q_kernel[(used * groups,)](
            q, k, v, out, dout, lse, dq, delta, cuts, sizes, *softmax, *counts, len(static),
            max(static) // BLOCK.value, *strides, SINKS_UP=triton.next_power_of_2(len(static)), **rows,
        )  # fmt: skip
        keys = gradient_keys(dim, q.dtype)
        gradient_kv_kernel[(-(-n // keys) * groups,)](
            q, k, v, dout, lse, delta, dk, dv, *softmax[:2], n, groups, *strides[:6], *strides[8:],
            HEADS=per_group, KEYS=keys, **_meta(shape_kv, dim),
        )  # fmt: skip
        if changing:
            found = [x.history(k, x.slots, bin_size) for x in changing if x.history is not None]
            sink_keys = torch.cat([x.flatten().int() for x in found])
            changing_sinks_kernel[(used * groups,)](
                q, k, v, dout, lse, delta, changing_cuts, sink_keys, changing_sizes, *softmax, *counts, len(changing),
                *strides[:6], *strides[8:], **rows,
            )  # fmt: skip
    table = torch.cat([cuts, changing_cuts], 2).unflatten(0, (bins, -1)).sum(1)  # [rows, kv_heads, sinks, edges]
    places = iter(range(len(static))), iter(range(len(static), len(static) + len(changing)))
    order = [next(places[sink.history is not None]) for sink in sinks]
    return dq, dk, dv, table.permute(2, 1, 0, 3)[order].contiguous()


def _meta(shape: Tiles, dim: int) -> dict[str, Any]:
    return {
        "D": dim, "WIDTH": shape.width, "BLOCK_M": shape.block_m, "PRECISION": shape.precision,
        "num_warps": shape.warps, "num_stages": shape.stages,
    }  # fmt: skip
