"""Harm of cuts whose sink holds other keys than the first (`moa.kernels.keydiff`), for `influence.py`.

Such a sink holds other keys at each edge, so its sums are taken anew there from keys gathered by position. That needs a
loop within the loop over key blocks, which beside dQ would spill registers: hence a sweep of its own, without dQ.
"""

import triton
import triton.language as tl

from moa.kernels.triton.common import BLOCK, RUN_TIME, load_rows
from moa.kernels.triton.gradient_q import harms, rows_of, weigh

UNSPECIALISED = [*RUN_TIME, "per_bin", "edges", "held_count"]


@triton.jit
def held_harms(
    block, mass, effect, tile_q, tile_dout, k, v, size, d, cuts, held, sizes, scale, group, groups, edges, per_bin,
    held_count, k_token, v_token, live, POSITIONS: tl.constexpr, HEADS_UP: tl.constexpr, SQUARED: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Store the harm of the cut at `block` under each sink of other keys; `mass`, `effect` [BLOCK_M] from there on."""
    one = tl.zeros([1], tl.int32)
    lane = tl.arange(0, BLOCK)
    edge = block // per_bin
    for which in tl.range(0, held_count, num_stages=1):
        slots = tl.load(sizes + which)
        if (block % per_bin == 0) & (block * BLOCK > slots):
            sink_mass = tl.zeros([BLOCK_M], tl.float32)
            sink_effect = tl.zeros([BLOCK_M], tl.float32)
            mine = held + (edge * groups + group) * slots
            for at in tl.range(0, slots, BLOCK, num_stages=1):
                key = tl.load(mine + at + lane).to(tl.int64)
                tile_k = load_rows(k + key * k_token, live, D, WIDTH, False)  # [64, WIDTH]
                tile_v = load_rows(v + key * v_token, live, D, WIDTH, False)
                a, dp = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, live, False, PRECISION)
                sink_mass += tl.sum(a, 1)
                sink_effect += tl.sum(a * dp, 1)
            harm = harms(mass, effect, sink_mass[:, None], sink_effect[:, None], d, POSITIONS, HEADS_UP, 1, SQUARED)
            tl.store(cuts + which * edges + edge + one, harm)
        held += edges * groups * slots


@triton.jit(do_not_specialize=UNSPECIALISED)
def held_kernel(
    q, k, v, dout, lse, delta, cuts, held, sizes, scale, tokens, groups, tiles, edges, per_bin, held_count,
    q_head, q_token, k_head, k_token, v_head, v_token, dout_head, dout_token,
    HEADS: tl.constexpr, HEADS_UP: tl.constexpr, POSITIONS: tl.constexpr, SQUARED: tl.constexpr, D: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The cuts' harms of BLOCK_M rows as in `gradient_q_kernel`: `cuts` is [tiles, groups, held_count, edges].

    `delta` is D of every row; `held` has for each size of sink in turn the positions held [edges, groups, slots].
    """
    group = tl.program_id(0) % groups
    tile = tiles - 1 - tl.program_id(0) // groups  # late rows have the most keys
    position, head, live = rows_of(tile, group, tokens, HEADS, HEADS_UP, POSITIONS, BLOCK_M)
    where = position.to(tl.int64)
    tile_q = load_rows(q + where * q_token + head * q_head, live, D, WIDTH, True)
    tile_dout = load_rows(dout + where * dout_token + head * dout_head, live, D, WIDTH, True)
    size = tl.load(lse + where * (groups * HEADS) + head, mask=live, other=float("inf"))
    d = tl.load(delta + where * (groups * HEADS) + head, mask=live, other=0.0)

    k += group.to(tl.int64) * k_head
    v += group.to(tl.int64) * v_head
    cuts += (tile.to(tl.int64) * groups + group) * held_count * edges
    mass = tl.zeros([BLOCK_M], tl.float32)
    effect = tl.zeros([BLOCK_M], tl.float32)
    diagonal = tile * POSITIONS // BLOCK
    for i in tl.range(0, diagonal + 1, num_stages=1):
        block = diagonal - i
        key = (block * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        tile_k = load_rows(k + key * k_token, key < tokens, D, WIDTH, True)  # [64, WIDTH]
        tile_v = load_rows(v + key * v_token, key < tokens, D, WIDTH, True)
        seen = key[None, :] <= where[:, None]
        a, dp = weigh(tile_q, tile_dout, tile_k, tile_v, size, scale, seen, True, PRECISION)
        mass += tl.sum(a, 1)
        effect += tl.sum(a * dp, 1)
        held_harms(
            block, mass, effect, tile_q, tile_dout, k, v, size, d, cuts, held, sizes, scale, group, groups, edges,
            per_bin, held_count, k_token, v_token, live, POSITIONS, HEADS_UP, SQUARED, D, WIDTH, BLOCK_M, PRECISION,
        )  # fmt: skip
