"""Measure what reading little costs the rows of a text that keeps everything: to first order, in the loss.

Beside `moa.kernels.influence`, for rows that would be decoded: each chooses its own pages. It holds `BLOCK` rows of one
group against all keys at a time, so memory grows linearly with the length.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moa.kernels.influence import change
from moa.kernels.paged.rows import best, scores
from moa.kernels.paged.summaries import QUADS, of_text
from moa.kernels.softmax import Softmax, weights
from moa.plans.reading import COARSE, FINE, INSIDE, choices, fetched, opened
from moa.plans.span import BLOCK


def effects(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, *, rows: Tensor, shares: Sequence[int], given: Sequence[int],
    softmax: Softmax,
) -> Tensor:  # fmt: skip
    """Return what rows lose that read a share of what they keep, which is everything before them.

    delta_i = sum_h [(sum_read A dP) / (sum_read A) - D_i], in the terms of `moa.kernels.influence.Tile`; the keys read
    are those that `moa.kernels.paged.selection` chooses.

    Args:
        q: Queries of one sequence [query_heads, N, D].
        k: Keys [kv_heads, N, D].
        v: Values [kv_heads, N, D].
        dout: Gradient at the attention output [query_heads, N, D].
        rows: int64 [rows], positions of the rows.
        shares: Shares of all bytes up to the row, in 1/256 (`moa.plans.reading`).
        given: First keys that are always read, each a multiple of 16.
        softmax: How scores become weights.

    Returns:
        [given, shares, kv_heads, rows], in float32 at least.
    """
    groups, _, size = k.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    found = q.new_empty((len(given), len(shares), groups, len(rows)), dtype=wide)
    sinks = softmax.sinks_of(groups)
    for g in range(groups):
        keys, values, quads = k[g].to(wide), v[g].to(wide), of_text(k[g]).unflatten(1, (QUADS, -1))
        for start in range(0, len(rows), BLOCK):
            some = slice(start, start + BLOCK)
            mine, lost = (x.unflatten(0, (groups, -1))[g, :, rows[some]].transpose(0, 1).to(wide) for x in (q, dout))
            logits = None if sinks is None else sinks[g].expand(len(mine), -1)
            tile = _Tile(mine, lost, keys, values, rows[some], softmax._replace(sink_logits=logits))
            pages = (
                scores(mine * softmax.scale, quads[None, :, 0]),
                scores(mine * softmax.scale, quads[None, :, 1:].flatten(1, 2)),
            )
            for i, first in enumerate(given):
                for j, share in enumerate(shares):
                    found[i, j, g, some] = tile.lost(_read(*pages, rows[some], share, first, size))
    return found


class _Tile:
    """Rows of one group against all keys, in sums over fine pages.

    Attributes:
        a: Attention weights [rows, heads, pages].
        adp: Weights times the gradient at them, likewise.
        sunk: Weight of a learned sink [rows, heads, 1]; 0 where there is none.
    """

    def __init__(self, q: Tensor, dout: Tensor, k: Tensor, v: Tensor, rows: Tensor, softmax: Softmax) -> None:
        score = softmax.capped(q @ k.mT * softmax.scale)
        later = torch.arange(len(k), device=k.device) > rows[:, None]
        a, self.sunk = weights(score.masked_fill_(later[:, None], -torch.inf), softmax.sink_logits)
        self.a, self.adp = (_by_page(x) for x in (a, a * (dout @ v.mT)))

    def lost(self, read: Tensor) -> Tensor:
        """Return the effect of reading these pages alone [rows, pages], heads added up: [rows]."""
        mass, weighted = ((x * read[:, None]).sum(-1, keepdim=True) for x in (self.a, self.adp))
        return change(mass + self.sunk, weighted, self.adp.sum(-1, keepdim=True)).sum((1, 2))


def _by_page(x: Tensor) -> Tensor:
    """Return the sums of `x` [rows, heads, keys] over fine pages: [rows, heads, pages], of whole blocks."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % BLOCK))
    total: Tensor = padded.unflatten(-1, (-1, FINE)).sum(-1)
    return total


def _read(coarse: Tensor, fine: Tensor, rows: Tensor, share: int, given: int, size: int) -> Tensor:
    """Return which fine pages the rows read, by the scores of all pages [rows, heads, pages]: bool [rows, pages]."""
    length = rows.cpu().numpy() + 1
    among = choices(length, given)
    count = fetched(share, length, length, given, size)
    wanted = np.where(count == INSIDE * among, among, opened(count, among))
    first, chosen, open_, fetch = (
        torch.from_numpy(np.asarray(x)).to(rows.device) for x in (given // COARSE, among, wanted, count)
    )
    page = torch.arange(coarse.shape[-1], device=rows.device)
    inside = (page >= first) & (page < first + chosen[:, None])
    opens = best(coarse, inside, open_).repeat_interleave(INSIDE, 1)
    return best(fine, opens, fetch) | ~inside.repeat_interleave(INSIDE, 1)
