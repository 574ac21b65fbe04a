"""Time the influence backward pass beside a plain flash backward pass."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gpu_parts.measure import Bench, Row
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from moa.kernels.sink_contents import sinks
from moa.kernels.softmax import Softmax
from moa.kernels.triton.influence import forward, influence_backward


def run(bench: Bench, report: dict[str, Any]) -> Iterator[Row]:
    """Yield one layer of Llama-3-8B by length, and add the fit of extra memory over length to the report."""
    rows: list[Row] = []
    for n in (64, 130) if bench.dry else (1024, 2048, 4096, 8192, 16384, 32768):
        shape = (4, 2, 16) if bench.dry else (32, 8, 128)
        found = bench.cell(f"influence {n}", lambda: [one(bench, n, *shape)])
        rows += found
        yield from found
    if len(rows) > 1:
        lengths, extra = (np.array([row[name] for row in rows], float) for name in ("length", "extra MB"))
        fit = np.polyfit(lengths, extra, 1)
        report["extra MB = a + b * length"] = [float(x) for x in fit[::-1]]
        report["largest deviation from the fit, MB"] = float(np.abs(np.polyval(fit, lengths) - extra).max())


def one(bench: Bench, n: int, heads: int, groups: int, dim: int) -> Row:
    """Compare one length. The plain backward gets keys expanded to all heads, so that it need not sum over a group."""
    bin_size = 64 * max(1, -(-n // (64 * 128)))
    q, k, v, dout = (
        torch.randn(h, n, dim, dtype=torch.bfloat16, device=bench.device) for h in (heads, groups, groups, heads)
    )
    scale = dim**-0.5
    out, lse = forward(q, k, v, softmax=Softmax(scale))

    def ours(others: tuple[int, ...] = ()) -> object:
        measured = sinks("first", 64) + sinks("keydiff", *others)
        return influence_backward(q, k, v, out, lse, dout, softmax=Softmax(scale), sinks=measured, bin_size=bin_size)

    leaves = [x[None].requires_grad_() for x in (q, *(x.repeat_interleave(heads // groups, 0) for x in (k, v)))]
    with sdpa_kernel(SDPBackend.MATH if bench.dry else SDPBackend.FLASH_ATTENTION):
        attended = sdpa(*leaves, is_causal=True)

    def plain() -> object:
        return torch.autograd.grad(attended, leaves, dout[None], retain_graph=True)

    times = bench.time(
        {
            "ours": ours, "both kinds of sinks": lambda: ours((64,)), "flash": plain,
            "our forward": lambda: forward(q, k, v, softmax=Softmax(scale)),
        }
    )  # fmt: skip
    return {
        "length": n, **{f"{name} ms": 1e3 * seconds for name, seconds in times.items()},
        "ours / flash": times["ours"] / times["flash"], "extra MB": bench.peak(lambda: ours((64,))) / 1e6,
    }  # fmt: skip
