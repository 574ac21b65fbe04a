"""Call FlexAttention with a plan's mask."""

import torch
from gpu_parts.measure import Bench, Call
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from moa.plans.span import BLOCK

SIDE = 128
"""Positions of FlexAttention's own blocks: two of ours."""
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
    rows, keys = q.shape[2], k.shape[2]
    table, sinks, shift = first.repeat_interleave(q.shape[1] // k.shape[1], 0), sink, keys - rows
    sinks = sink.repeat_interleave(q.shape[1] // k.shape[1])

    def visible(b: Tensor, h: Tensor, row: Tensor, key: Tensor) -> Tensor:
        at = row + shift
        return (key <= at) & ((key < sinks[h]) | (key // BLOCK >= table[h, at // BLOCK]))

    mask = _mask(table, sinks, rows, keys, visible)
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


def _mask(table: Tensor, sinks: Tensor, rows: int, keys: int, visible: object) -> BlockMask:
    """Return block lists made from the table: a tensor of rows x keys would not fit at 131,072 tokens."""
    device, shift = table.device, keys - rows
    columns, lines = -(-keys // SIDE), -(-rows // SIDE)
    low = (torch.arange(lines, device=device) * SIDE + shift).clamp(max=keys - 1)  # a line's first and last position
    high = (low + min(SIDE, rows) - 1).clamp(max=keys - 1)
    begin = torch.arange(columns, device=device) * SIDE
    end = begin + SIDE - 1
    low_edge, high_edge = (BLOCK * table[:, at // BLOCK].long()[..., None] for at in (low, high))
    sink = sinks[:, None, None]
    some = (begin <= high[:, None]) & ((begin < sink) | (end >= low_edge))
    whole = (end <= low[:, None]) & ((end < sink) | (begin >= high_edge))
    part = some & ~whole
    lists = [_lists(x) for x in (part, whole)]
    return BlockMask.from_kv_blocks(
        *lists[0], *lists[1], BLOCK_SIZE=(SIDE, SIDE), mask_mod=visible, seq_lengths=(rows, keys)
    )  # fmt: skip


def _lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return counts [1, heads, lines] and indices [1, heads, lines, columns], the chosen ones first."""
    order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1).to(torch.int32)[None], order.to(torch.int32)[None]
