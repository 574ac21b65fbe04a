"""Call FlashInfer's dense batch decode, where it is installed."""

from importlib.util import find_spec

import torch
from gpu_parts.measure import Bench, Call
from torch import Tensor

PAGE = 64


def flashinfer_call(bench: Bench, q: Tensor, keys: Tensor, values: Tensor) -> Call | None:
    """Return one decode step over all keys as a call; None where FlashInfer is not installed.

    Args:
        bench: The device.
        q: [batch, query_heads, D].
        keys: [batch, kv_heads, length, D], length a multiple of 64.
        values: Like keys.
    """
    if bench.dry or find_spec("flashinfer") is None:
        return None
    import flashinfer

    batch, groups, length, dim = keys.shape
    pages = length // PAGE
    paged = tuple(
        x.unflatten(2, (pages, PAGE)).permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous() for x in (keys, values)
    )
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        torch.empty(256 << 20, dtype=torch.uint8, device=q.device), "NHD"
    )
    wrapper.plan(
        torch.arange(batch + 1, dtype=torch.int32, device=q.device) * pages,
        torch.arange(batch * pages, dtype=torch.int32, device=q.device),
        torch.full((batch,), PAGE, dtype=torch.int32, device=q.device),
        q.shape[1], groups, dim, PAGE, q_data_type=q.dtype, kv_data_type=keys.dtype,
    )  # fmt: skip

    def call() -> Tensor:
        out: Tensor = wrapper.run(q, paged)
        return out

    return call
