"""Attention with a soft-cap or learned sinks, which library attention lacks: plain products of a tile at a time."""

import torch
from torch import Tensor

from moa.kernels.softmax import Softmax, weights

SCORES = 1 << 22
"""The most scores of a tile, unless those of 16 rows are more."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, softmax: Softmax) -> Tensor:
    """Return the attention of rows to the keys of their group: [groups, heads, rows, D].

    Args:
        q: [groups, heads, rows, D].
        k: [groups, keys, D].
        v: [groups, keys, D].
        bias: -inf where a row does not see a key, else 0: [1 or groups, rows, keys]; None where row i sees keys 0 to i.
        softmax: How scores become weights; learned sinks are [groups * heads].
    """
    groups, heads, rows, _ = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    sinks, out = softmax.sinks_of(groups), torch.empty_like(q, memory_format=torch.contiguous_format)
    at_once = max(1, SCORES // (heads * rows * k.shape[1]))
    step = max(16, SCORES // (heads * k.shape[1]))
    for g in range(0, groups, at_once):
        some = slice(g, g + at_once)
        keys, values = k[some].to(wide), v[some].to(wide)
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            stop = end if bias is None else k.shape[1]
            scores = q[some, :, begin:end].flatten(1, 2).to(wide) @ keys[:, :stop].mT * softmax.scale
            scores = softmax.capped(scores).unflatten(1, (heads, -1))
            if bias is None:
                later = torch.ones(end - begin, stop - begin, dtype=torch.bool, device=q.device).triu(1)
                scores[..., begin:].masked_fill_(later, -torch.inf)
            else:
                scores += (bias if len(bias) == 1 else bias[some])[:, None, begin:end]
            weight, _ = weights(scores, None if sinks is None else sinks[some, :, None])
            out[some, :, begin:end] = (weight.flatten(1, 2) @ values[:, :stop]).unflatten(1, (heads, -1)).to(q.dtype)
    return out
