"""Harm of cuts whose sink holds other keys than the first (`moa.kernels.keydiff`), for `influence.py`.

Such a sink holds other keys at each edge, so its sums are computed there from keys gathered by position. That needs a
loop within the loop over key blocks. Beside dQ it would spill registers, so it is a kernel of its own, without dQ.
"""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, LOG2E, RUN_TIME
from moa.kernels.triton.gradient_q import harms, load_tile, row_sums, sunk_weight

UNSPECIALISED = [*RUN_TIME, "per_bin", "edges", "sink_count"]


@triton.jit
def changing_sink_harms(
    block, mass, effect, tile_q, tile_dout, k, v, size, d, cuts, sink_keys, sizes, scale, cap, group, groups, edges,
    per_bin, sink_count, k_token, v_token, live, POSITIONS: tl.constexpr, HEADS_UP: tl.constexpr, SQUARED: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the harm of the cut at `block` under each changing sink; `mass`, `effect` [BLOCK_M] are of keys from it."""
    one = tl.zeros([1], tl.int32)
    lane = tl.arange(0, BLOCK)
    edge = block // per_bin
    for which in tl.range(0, sink_count, num_stages=1):
        slots = tl.load(sizes + which)
        if (block % per_bin == 0) & (block * BLOCK > slots):
            sink_mass = tl.zeros([BLOCK_M], tl.float32)
            sink_effect = tl.zeros([BLOCK_M], tl.float32)
            mine = sink_keys + (edge * groups + group) * slots
            for at in tl.range(0, slots, BLOCK, num_stages=1):
                key = tl.load(mine + at + lane).to(tl.int64)
                more_mass, more_effect = row_sums(
                    key, live, live, tile_q, tile_dout, k, v, size, scale, cap, k_token, v_token, False, D, WIDTH,
                    PRECISION,
                )  # fmt: skip
                sink_mass += more_mass
                sink_effect += more_effect
            harm = harms(mass, effect, sink_mass[:, None], sink_effect[:, None], d, POSITIONS, HEADS_UP, 1, SQUARED)
            tl.store(cuts + which * edges + edge + one, harm)
        sink_keys += edges * groups * slots


@triton.jit(do_not_specialize=UNSPECIALISED)
def changing_sinks_kernel(
    q, k, v, dout, lse, delta, cuts, sink_keys, sizes, scale, cap, sink_logits, tokens, groups, tiles, edges, per_bin,
    sink_count, q_head, q_token, k_head, k_token, v_head, v_token, dout_head, dout_token,
    HEADS: tl.constexpr, HEADS_UP: tl.constexpr, POSITIONS: tl.constexpr, SQUARED: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the cuts' harms of BLOCK_M rows as `gradient_q_kernel` does: `cuts` is [tiles, groups, sink_count, edges].

    `delta` is D of every row; `sink_keys` has for each size of sink in turn the positions held [edges, groups, slots].
    """
    group = tl.program_id(0) % groups
    tile = tiles - 1 - tl.program_id(0) // groups  # late rows have the most keys
    position, head, live, tile_q, tile_dout, size = load_tile(
        q, dout, lse, tile, group, tokens, groups, q_head, q_token, dout_head, dout_token, HEADS, HEADS_UP, POSITIONS,
        BLOCK_M, D, WIDTH,
    )  # fmt: skip
    d = tl.load(delta + position * (groups * HEADS) + head, mask=live, other=0.0)

    if cap is not None:
        cap *= LOG2E
    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    cuts += (tile.to(tl.int64) * groups + group) * sink_count * edges
    mass = tl.zeros([BLOCK_M], tl.float32)
    if sink_logits is not None:
        mass = sunk_weight(sink_logits, head, live, size)
    effect = tl.zeros([BLOCK_M], tl.float32)
    diagonal = tile * POSITIONS // BLOCK
    for i in tl.range(0, diagonal + 1, num_stages=1):
        block = diagonal - i
        key = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        seen = key[None, :] <= position[:, None]
        more_mass, more_effect = row_sums(
            key, key < tokens, seen, tile_q, tile_dout, k, v, size, scale, cap, k_token, v_token, True, D, WIDTH,
            PRECISION,
        )  # fmt: skip
        mass += more_mass
        effect += more_effect
        changing_sink_harms(
            block, mass, effect, tile_q, tile_dout, k, v, size, d, cuts, sink_keys, sizes, scale, cap, group, groups,
            edges, per_bin, sink_count, k_token, v_token, live, POSITIONS, HEADS_UP, SQUARED, D, WIDTH, BLOCK_M,
            PRECISION,
        )  # fmt: skip
