"""Choose keys for sinks that do not hold the first keys: those that differ most from the keys around them.

Of all keys that have left the window, a sink of S slots holds the first 4 of the text, which models need as attention
sinks (arXiv 2309.17453), and the S - 4 of least cosine to the mean key of their own block, after KeyDiff (arXiv
2504.15364). A key's score is known once its block is full and never changes, so a key that was dropped is never needed
again, and what a sink holds does not depend on how the text was cut into calls.

The cosine is over the slower half of the rotary pairs, the second half of either half of the head: keys are stored
after RoPE, whose fast pairs turn several times within a block and do not show how similar two keys are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moa.plans.span import BLOCK

PINNED = 4
"""Keys at the start of the text that are never dropped."""

Scores = Callable[[Tensor], Tensor]
"""From keys after RoPE, of whole blocks [..., n, D], to float32 [..., n]; a key's score knows its own block alone."""


def scores(k: Tensor) -> Tensor:
    """Return each key's score: how much it differs from the mean of its block.

    Args:
        k: Keys after RoPE, of whole blocks [..., n, D].

    Returns:
        float32 [..., n], -1 to 1.
    """
    slow = k.unflatten(-1, (2, -1))[..., k.shape[-1] // 4 :].flatten(-2)
    unit = _unit(slow.flatten(0, -2).T.contiguous().float()).unflatten(1, (-1, BLOCK))  # [D/2, blocks, 64]
    mean = _unit(_total(unit.movedim(2, 0)).movedim(0, 2))
    return -_total(unit * mean).view(k.shape[:-1])


def _unit(x: Tensor) -> Tensor:
    """Return vectors [D, ...] scaled to length 1; zeros stay zeros.

    A library's square root of float32 may be off by the last bit; that of float64 is exact once it is rounded.
    """
    return x / _total(x * x).double().sqrt().float().clamp(min=1e-12)


def _total(x: Tensor) -> Tensor:
    """Return sums over the first dimension, which stays; one half is added to the other until one number is left.

    Halves are those of the next power of two, as if zeros followed. A library's sum goes in an order that depends on
    shape, strides, processor and device, and rounds accordingly; additions number by number round alike everywhere, so
    equal keys have equal scores in every call.
    """
    while len(x) > 1:
        half = 1 << (len(x) - 1).bit_length() - 1
        later = x[half:]
        both = x[: len(later)] + later
        x = torch.cat([both, x[len(later) : half]]) if len(later) < half else both
    return x


def winners(score: Tensor, sink: int) -> Tensor:
    """Return the positions, ascending, of the `sink` keys of greatest `score` [..., n]; of equal ones the earlier."""
    order = score.sort(stable=True, dim=-1, descending=True).indices
    return order[..., :sink].sort(-1).values


def held(score: Tensor, sink: int) -> Tensor:
    """Return which keys a sink holds at first, and after each block of more that leaves the window.

    Args:
        score: [kv_heads, keys]: of the keys that it holds at first, then of those that leave. The text's first `PINNED`
            have infinite ones.
        sink: Slots.

    Returns:
        int64 [1 + blocks, kv_heads, sink], indices of keys, rising.
    """
    order = score.sort(stable=True, descending=True).indices
    place = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank = torch.empty_like(order).scatter_(1, order, place)  # none equals another
    states = [rank[:, :sink]]
    for left in rank[:, sink:].split(BLOCK, 1)[: (score.shape[1] - sink) // BLOCK]:
        states.append(torch.cat([states[-1], left], 1).topk(sink, largest=False, sorted=False).values)
    return order.expand(len(states), -1, -1).gather(2, torch.stack(states)).sort().values


def history(k: Tensor, sink: int, bin_size: int, *, scores_of: Scores) -> Tensor:
    """Return which keys a sink holds at every edge, when all keys before the edge have left the window.

    Args:
        k: Keys after RoPE of one sequence [kv_heads, n, D].
        sink: Slots, a multiple of 64.
        bin_size: Tokens from edge to edge, a multiple of 64.
        scores_of: Scores keys: the sink holds those that score most.

    Returns:
        int64 [edges, kv_heads, sink], positions; edge e is at token e * bin_size, below n. All of them where no more
        than `sink` have left: those the window still has are among them.
    """
    groups, n, _ = k.shape
    last = (n - 1) // bin_size * bin_size
    if last > sink:
        score = scores_of(k[:, :last])
        score[:, :PINNED] = torch.inf
        states = held(score, sink)
    else:
        states = torch.arange(sink, device=k.device).expand(1, groups, sink)
    return states[[max(0, edge - sink) // BLOCK for edge in range(0, n, bin_size)]]
