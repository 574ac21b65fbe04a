"""Read and write single keys in the pages of vLLM's CPU back-end.

A page of one KV head holds its keys, transposed, then its values: [head size, 64], [64, head size]. Other processors
have other layouts, so `check` compares with what vLLM's own kernel writes.
"""

import functools

import torch
from torch import Tensor
from vllm import _custom_ops as ops

from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK


def load(cache: Tensor, pages: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys and values of pages, both [64 * pages, head size].

    Args:
        cache: The pages of one KV head [pages, 1, 64, 2 * head size].
        pages: Indices of pages, int64.
    """
    raw = cache[pages].flatten(1)
    size = cache.shape[-1] // 2
    keys = raw[:, : BLOCK * size].unflatten(1, (size, BLOCK)).transpose(1, 2)
    return keys.reshape(-1, size), raw[:, BLOCK * size :].reshape(-1, size)


def store(cache: Tensor, pages: Tensor, k: Tensor, v: Tensor) -> None:
    """Write keys and values [64 * pages, head size] to pages."""
    keys = k.unflatten(0, (-1, BLOCK)).transpose(1, 2).flatten(1)
    cache[pages] = torch.cat([keys, v.unflatten(0, (-1, BLOCK)).flatten(1)], 1).view(-1, *cache.shape[1:])


@functools.cache
def check(isa: str, dtype: torch.dtype, size: int) -> None:
    """Refuse to run where vLLM's kernel lays pages out in another way.

    Args:
        isa: vLLM's name for the kernel.
        dtype: Of keys.
        size: Head size.

    Raises:
        Unsupported: It does.
    """
    cache = torch.zeros(2, 1, BLOCK, 2 * size, dtype=dtype)
    k, v = (torch.arange(BLOCK * size).view(BLOCK, size).remainder(251).add(shift).to(dtype) for shift in (1, 2))
    where = cache.view(2, 1, 2 * BLOCK, size).chunk(2, dim=2)
    ops.cpu_attn_reshape_and_cache(
        k[:, None], v[:, None], *where, torch.arange(BLOCK, 2 * BLOCK), isa, k_scale=1.0, v_scale=1.0,
        kv_cache_dtype="auto",
    )  # fmt: skip
    found = load(cache, torch.tensor([1]))
    if not (torch.equal(found[0], k) and torch.equal(found[1], v)):
        raise Unsupported(
            f"keydiff_window with vLLM's kernel {isa!r} in {str(dtype).removeprefix('torch.')}: its pages have another "
            "layout; --dtype float32 may take another kernel, and sink_window rules run with any"
        )
