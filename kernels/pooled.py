"""Attention where each KV head of a layer keeps its blocks in a pool and finds them by a block table of its own.

So vLLM stores keys and values (`serving/vllm`). These functions say in plain PyTorch what the kernels of
`moa.kernels.triton.pooled` compute; they work in any precision.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from moa.kernels.call import Visibility
from moa.plans.span import BLOCK


class Pool(NamedTuple):
    """Where the keys and values of one KV head lie.

    Attributes:
        blocks: [blocks, 64, 2 * D]: of every token its key, then its value.
        table: int32 [sequences, most]: the block that holds each 64 tokens of a text. Where no row sees these tokens,
            it may name any block.
        slots: int64 [tokens]: where each new token goes, 64 * block + place; a negative one goes nowhere.
    """

    blocks: Tensor
    table: Tensor
    slots: Tensor


def append(k: Tensor, v: Tensor, pools: Sequence[Pool]) -> None:
    """Write new keys and values [tokens, kv_heads, D] to their slots."""
    for head, pool in enumerate(pools):
        there = pool.slots >= 0
        slots = pool.slots[there]
        pool.blocks[slots // BLOCK, slots % BLOCK] = torch.cat([k[there, head], v[there, head]], -1)


def attend(
    q: Tensor, pools: Sequence[Pool], *, cu_seqlens: Tensor, lengths: Tensor, seen: Visibility, scale: float
) -> Tensor:
    """Return the attention of new tokens whose keys are in the pools already, [tokens, query_heads, D] like `q`.

    Args:
        q: Queries, packed; query head h uses KV head h // group size.
        pools: Of each KV head.
        cu_seqlens: int32 [sequences + 1], offsets of each sequence's new tokens.
        lengths: int32 [sequences], tokens of each with the new ones.
        seen: What rows see.
        scale: Factor on scores.
    """
    out, heads = torch.zeros_like(q), q.shape[1] // len(pools)
    for s, (begin, end) in enumerate(pairwise(cu_seqlens.tolist())):
        at = torch.arange(int(lengths[s]))
        row = at[len(at) - (end - begin) :]
        for g, pool in enumerate(pools):
            edge = seen.first[g, row // BLOCK]
            sees = (at <= row[:, None]) & ((at < seen.sink[g]) | (at // BLOCK >= edge[:, None]))
            any_sees = sees.any(0)  # all other keys may be NaN
            where = pool.table[s, at // BLOCK].long(), at % BLOCK
            k, v = pool.blocks[where][any_sees].chunk(2, -1)
            group = slice(g * heads, (g + 1) * heads)
            scores = torch.einsum("rhd,kd->rhk", q[begin:end, group], k) * scale
            weights = scores.masked_fill(~sees[:, None, any_sees], -torch.inf).softmax(-1)
            out[begin:end, group] = torch.einsum("rhk,kd->rhd", weights, v)
    return out
