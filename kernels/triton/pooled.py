"""Attention of all KV heads of a layer in one call, where each has blocks in a pool and a block table of its own.

`moa.kernels.pooled` says in plain PyTorch what it computes. vLLM hands out such blocks; `serving/vllm` is who calls.

Algorithm. One launch writes the new keys and values to their slots; from then on all keys lie in blocks. Sequences with
one new token attend in a second launch, split along the keys, whose pieces a small third one joins. Where a sequence
has more, one more launch (`pooled_prefill.py`) attends for these. Each launch serves every head: heads differ only in
addresses, which lie in a list on the device, and in what they see.

Nothing waits for the device. Grids follow from the numbers of tokens and sequences and from the longest text; what a
row sees follows on the device from its length. So a CUDA graph can hold a step, as long as blocks, tables, slots and
lengths stay at their addresses.

Pieces. A head has pieces in proportion to the blocks that it sees at the longest text. At a shorter one it sees fewer,
and its pieces become smaller, not fewer, down to `SMALLEST_PIECE` blocks.

Work. Bytes: K and V of what a row sees, once per group; new keys and values twice more; 2 * 4 * D per row and piece.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from moa.kernels.call import Visibility
from moa.kernels.pooled import Pool
from moa.kernels.triton.common import on_device, require_supported
from moa.kernels.triton.pieces import PIECES_PER_PROCESSOR, SMALLEST_PIECE, processors
from moa.kernels.triton.pooled_append import APPENDED, pooled_append_kernel
from moa.kernels.triton.pooled_decode import pooled_decode_kernel, pooled_join_kernel
from moa.kernels.triton.pooled_prefill import pooled_prefill_kernel
from moa.kernels.triton.tiles import Tiles, decode_tiles, prefill_tiles
from moa.plans.span import BLOCK, Reach


class Layer(NamedTuple):
    """What the kernels know of a layer for good.

    Attributes:
        seen: What rows see.
        capacity: int32 [kv_heads], tokens of the blocks that a row at the longest text sees.
        blocks: The same in blocks, on the host.
    """

    seen: Visibility
    capacity: Tensor
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, rules: Reach, longest: int, device: torch.device | str) -> "Layer":
        """Return the layer whose KV heads have these rules, for texts of up to `longest` tokens."""
        first, blocks = rules.first(np.arange(longest // BLOCK + 1)), rules.live_blocks(longest)
        on = [torch.from_numpy(x.astype(np.int32)).to(device) for x in (first, rules.sink, BLOCK * blocks)]
        return cls(Visibility(on[0], on[1]), on[2], tuple(blocks.tolist()))


class Places(NamedTuple):
    """Where the pools of a layer lie.

    Attributes:
        addresses: int64 [3, kv_heads], of blocks, block tables and slots.
        step: Elements from block to block.
        width: Entries of a row of a block table.
        tokens: Slots of each head.
    """

    addresses: Tensor
    step: int
    width: int
    tokens: int

    @classmethod
    def of(cls, pools: Sequence[Pool]) -> "Places":
        """Return where these pools lie; it copies to the device, so it cannot be part of a CUDA graph.

        Raises:
            ValueError: Pools differ in their strides.
        """
        strides = {(x.blocks.stride(), x.table.stride(), x.slots.stride(), len(x.slots)) for x in pools}
        (step, *inner), (width, *columns), slots, tokens = next(iter(strides))
        if len(strides) > 1 or inner != [pools[0].blocks.shape[-1], 1] or columns != [1] or slots != (1,):
            raise ValueError(f"pools of a layer must lie alike, each block in one piece, found strides {strides}")
        found = [[x.data_ptr() for x in pool] for pool in pools]
        addresses = torch.tensor(found, dtype=torch.int64, device=pools[0].blocks.device).T.contiguous()
        return cls(addresses, step, width, tokens)


def launch(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, *, layer: Layer, places: Places, cu_seqlens: Tensor, lengths: Tensor,
    longest: int, scale: float,
) -> None:  # fmt: skip
    """Write new keys and values to the pools, and the attention of the new tokens to `out`.

    Args:
        q: Queries of the new tokens [tokens, query_heads, D], packed; query head h uses KV head h // group size.
        k, v: Their keys and values [tokens, kv_heads, D].
        out: [tokens, query_heads, D], contiguous. Rows that belong to no sequence are left as they are.
        layer: The layer.
        places: Its pools, in the dtype of `k`.
        cu_seqlens: int32 [sequences + 1], offsets of each sequence's new tokens.
        lengths: int32 [sequences], tokens of each with the new ones; anything where there are none.
        longest: The most new tokens of a sequence, or an upper bound; 1 only where no sequence has more.
        scale: Factor on scores.
    """
    require_supported(q, k, v)
    (tokens, heads, dim), groups, sequences = q.shape, k.shape[1], len(lengths)
    pools, tables, slots = places.addresses
    rows, group = min(tokens, places.tokens), heads // groups
    up, strides = triton.next_power_of_2(groups), q.stride()[:2]
    with on_device(q):
        pooled_append_kernel[(triton.cdiv(rows, APPENDED), groups)](
            k, v, pools, slots, rows, places.step, *k.stride()[:2], *v.stride()[:2], D=dim,
            WIDTH=triton.next_power_of_2(dim), ROWS=APPENDED, num_warps=4,
        )  # fmt: skip
        if longest > 1:
            shape = prefill_tiles(dim, q.dtype)
            tiles = tokens * group // shape.block_m + sequences
            pooled_prefill_kernel[(tiles * groups,)](
                q, out, pools, tables, *layer.seen, cu_seqlens, lengths, scale, layer.seen.first.shape[1], sequences,
                groups, tiles, places.step, places.width, *strides, HEADS=group, GROUPS=up, **compiled(shape, dim),
            )  # fmt: skip
        per_piece, counts = pieces_of_heads(layer, sequences, q.device)
        most, parts, lse = max(counts), out, out
        if most > 1:
            parts = torch.empty((most, sequences, heads, dim), dtype=torch.float32, device=q.device)
            lse = torch.empty((most, sequences, heads), dtype=torch.float32, device=q.device)
        pooled_decode_kernel[(sum(counts), sequences)](
            q, parts, lse, pools, tables, *layer.seen, layer.capacity, cu_seqlens, lengths, scale,
            layer.seen.first.shape[1], groups, per_piece, places.step, places.width, *strides, HEADS=group, GROUPS=up,
            SPLIT=most > 1, **compiled(decode_tiles(dim, q.dtype, group), dim),
        )  # fmt: skip
        if most > 1:
            pooled_join_kernel[(sequences, heads, triton.cdiv(dim, 32))](
                parts, lse, out, *layer.seen, layer.capacity, cu_seqlens, lengths, layer.seen.first.shape[1], groups,
                per_piece, HEADS=group, D=dim, COLUMNS=32, AT_ONCE=32, num_warps=1,
            )  # fmt: skip


def compiled(tiles: Tiles, dim: int) -> dict[str, int | str]:
    """Return what of a tile shape is compiled in, by name."""
    return {
        "D": dim, "WIDTH": tiles.width, "BLOCK_M": tiles.block_m, "PRECISION": tiles.precision,
        "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip


def pieces_of_heads(layer: Layer, sequences: int, device: torch.device) -> tuple[int, list[int]]:
    """Return the blocks of a piece at the longest text, and how many pieces each head has in every sequence."""
    size = max(SMALLEST_PIECE, -(-sequences * sum(layer.blocks) // (PIECES_PER_PROCESSOR * processors(device))))
    return size, [max(1, -(-blocks // size)) for blocks in layer.blocks]
