"""Choose the keys that a row reads: plain PyTorch, one row of one group at a time; what all back-ends must choose.

How many pages a row reads is `moa.plans.reading`. A page's score for a query is

    (q · mean + |q| · spread / 2) * scale

over the slow channels (UNIQUE, arXiv 2605.27740, with one spread per page). The heads of a group are added up after a
softmax over the pages scored, and of equal sums the earlier page is chosen.
"""

import torch
from torch import Tensor

from moa.kernels.paged.summaries import QUADS, unpack
from moa.plans.reading import COARSE, FINE, INSIDE, choices, fetched, opened, slow_channels

LOWEST = -80.0
"""The least score under the head's best that is told from lower ones: e**-80 is a number in all dtypes."""


def keys_read(q: Tensor, summaries: Tensor, *, share: int, given: int, length: int, kept: int) -> Tensor:
    """Return which of the keys that a row sees it reads: bool [kept].

    Args:
        q: The row's queries [heads of the group, D], times the scale, in float32 at least.
        summaries: uint8 [kept blocks, bytes]: those of the blocks that the row sees, in the order of the text.
        share, given: See `moa.kernels.call.Reading`.
        length: Tokens up to the row, itself included.
        kept: Keys that the row sees.
    """
    size = q.shape[-1]
    among, count = int(choices(kept, given)), int(fetched(share, length, kept, given, size))
    read = torch.ones(kept, dtype=torch.bool, device=q.device)
    if count == INSIDE * among:
        return read
    read[given : given + COARSE * among] = False
    if count == 0:
        return read
    mean, spread = unpack(summaries.view(len(summaries), QUADS, -1), q.dtype)
    slow = q[:, torch.from_numpy(slow_channels(size)).to(q.device)]
    score = torch.einsum("hc,bupc->hbup", slow, mean) + 0.5 * slow.norm(dim=-1)[:, None, None, None] * spread
    first = given // COARSE
    coarse = score[:, :, 0].flatten(1)[:, first : first + among]
    open_ = first + best(coarse, int(opened(count, among)))
    inside = INSIDE * open_[:, None] + torch.arange(INSIDE, device=q.device)
    fine = score[:, :, 1:].flatten(1)[:, inside.flatten()]
    chosen = inside.flatten()[best(fine, count)]
    read[(FINE * chosen[:, None] + torch.arange(FINE, device=q.device)).flatten()] = True
    return read


def best(scores: Tensor, count: int) -> Tensor:
    """Return the `count` pages of greatest score over all heads [heads, pages], int64, in rising order."""
    weight = (scores - scores.amax(-1, keepdim=True)).clamp(min=LOWEST).exp()
    weight = (weight / weight.sum(-1, keepdim=True)).sum(0)
    return weight.sort(descending=True, stable=True).indices[:count].sort().values
