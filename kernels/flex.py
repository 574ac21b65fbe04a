"""Describe what queries see as a `BlockMask` of torch's FlexAttention, from the tables that kernels take."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from moa.plans.span import BLOCK

SIDE = 128
"""Positions of FlexAttention's own blocks: two of ours."""


def block_mask(first: Tensor, sink: Tensor, group: int, rows: int, keys: int) -> BlockMask:
    """Return the mask of the last `rows` of `keys` positions.

    Its lists of blocks are made from the table: a tensor of rows x keys would not fit at 131,072 tokens.

    Args:
        first: First block after the sink that each query block sees, by group: [kv_heads, blocks].
        sink: Tokens [kv_heads].
        group: Query heads of a group.
        rows: Queries.
        keys: Keys, of which the last `rows` are at the queries' positions.

    Returns:
        A mask of one batch row and kv_heads * group heads, which broadcasts over a batch.
    """
    table, sinks, shift = first.repeat_interleave(group, 0), sink.repeat_interleave(group), keys - rows

    def visible(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        at = row + shift
        return (key <= at) & ((key < sinks[h]) | (key // BLOCK >= table[h, at // BLOCK]))

    device = table.device
    columns, lines = -(-keys // SIDE), -(-rows // SIDE)
    low = (torch.arange(lines, device=device) * SIDE + shift).clamp(max=keys - 1)  # a line's first and last position
    high = (low + min(SIDE, rows) - 1).clamp(max=keys - 1)
    begin = torch.arange(columns, device=device) * SIDE
    end = begin + SIDE - 1
    low_edge, high_edge = (BLOCK * table[:, at // BLOCK].long()[..., None] for at in (low, high))
    some = (begin <= high[:, None]) & ((begin < sinks[:, None, None]) | (end >= low_edge))
    whole = (end <= low[:, None]) & ((end < sinks[:, None, None]) | (begin >= high_edge))
    part = some & ~whole
    return BlockMask.from_kv_blocks(
        *_lists(part), *_lists(whole), BLOCK_SIZE=(SIDE, SIDE), mask_mod=visible, seq_lengths=(rows, keys)
    )


def _lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return counts [1, heads, lines] and indices [1, heads, lines, columns], the chosen ones first."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1).to(torch.int32)[None], order.to(torch.int32)[None]
