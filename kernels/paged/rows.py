"""Score and choose pages for many rows at once, as `moa.kernels.paged.selection` does for one."""

import torch
from torch import Tensor

from moa.kernels.paged.selection import LOWEST
from moa.kernels.paged.summaries import unpack
from moa.plans.reading import slow_channels


def scores(q: Tensor, quads: Tensor) -> Tensor:
    """Return the scores [rows, heads, 4 * quads] of the pages of quads, for scaled queries.

    Args:
        q: Queries [rows, heads, D] times the scale, in float32 at least.
        quads: Summaries, uint8 [rows, quads, bytes], or [1, quads, bytes] of pages that all rows choose among.
    """
    mean, spread = unpack(quads, q.dtype)
    slow = q[..., torch.from_numpy(slow_channels(q.shape[-1])).to(q.device)]
    lengths: Tensor = slow.norm(dim=-1, keepdim=True)
    return slow @ mean.flatten(1, 2).mT + lengths * (0.5 * spread.flatten(1)[:, None])


def best(scores: Tensor, candidate: Tensor, count: Tensor) -> Tensor:
    """Return which candidates [rows, pages] are the `count` [rows] of greatest scores [rows, heads, pages]."""
    scores = scores.masked_fill(~candidate[:, None], -torch.inf)
    below = (scores - scores.amax(-1, keepdim=True)).clamp(min=LOWEST)
    weight = below.exp().masked_fill(~candidate[:, None], 0)
    weight = (weight / weight.sum(-1, keepdim=True)).sum(1).masked_fill(~candidate, -1)
    order = weight.sort(dim=-1, descending=True, stable=True).indices
    first = torch.arange(order.shape[1], device=order.device) < count[:, None]
    return torch.zeros_like(candidate).scatter_(1, order, first)
