"""Call FlexAttention with a plan's mask."""

import torch
from gpu_parts.measure import Bench, Call
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention

from moa.kernels.flex import block_mask

torch._dynamo.config.recompile_limit = 256  # each shape and mask is a graph; by default the ninth runs uncompiled
_compiled = torch.compile(flex_attention, dynamic=False)


def flex_call(bench: Bench, q: Tensor, k: Tensor, v: Tensor, first: Tensor, sink: Tensor) -> Call | None:
    """Return attention of the last q.shape[2] positions as a call; None where FlexAttention refuses, which is noted.

    Args:
        bench: The device.
        q: [batch, query_heads, rows, D].
        k: [batch, kv_heads, keys, D].
        v: Like k.
        first: The plan's table [kv_heads, blocks].
        sink: Tokens [kv_heads].
    """
    mask = block_mask(first, sink, q.shape[1] // k.shape[1], q.shape[2], k.shape[2])
    run = flex_attention if bench.dry else _compiled

    def call() -> Tensor:
        out: Tensor = run(q, k, v, block_mask=mask, enable_gqa=True)
        return out

    graphs = counters["stats"]["unique_graphs"]
    try:
        call()
    except Exception as error:  # its compiler's errors have many types
        bench.skipped.append(f"FlexAttention {tuple(q.shape)}: {str(error).splitlines()[0]}")
        return None
    if not bench.dry and counters["stats"]["unique_graphs"] == graphs:
        bench.skipped.append(f"FlexAttention {tuple(q.shape)}: ran without being compiled")
        return None
    return call
