"""Let one block leave the window of sinks, in plain PyTorch: on every device, and in graphs of `torch.compile`.

The operation is one to the compiler, so its arithmetic is the same to the last bit inside of a graph and outside.
"""

import torch
from torch import Tensor

from moa.kernels.keydiff.selection import PINNED, winners
from moa.kernels.sink_contents import SCORES
from moa.kernels.store import slots
from moa.plans.span import BLOCK


@torch.library.custom_op(
    "moa::leave", mutates_args=("k", "v", "score", "position", "folded", "can_undo"), device_types=("cpu", "cuda")
)
def leave(
    k: Tensor, v: Tensor, score: Tensor, position: Tensor, folded: Tensor, can_undo: Tensor, base: Tensor,
    capacity: Tensor, edge: Tensor, groups: Tensor, size: int, holds: str,
) -> None:  # fmt: skip
    """Let the first block besides the sink leave the window: the sink keeps the best of its own and these keys.

    That is for sinks whose block before `edge` has not left. It waits for no GPU: there all sinks are computed, and
    those that do not move stay as they are.

    Args:
        k, v, base, capacity: See `moa.kernels.store.Store`.
        score, position, folded, can_undo: See `moa.kernels.keydiff.sinks.Sinks`.
        edge: int [sequences, kv_heads], the first block besides the sink that rows see.
        groups: int64 [groups], those whose sinks have `size` slots and hold the keys of the name `holds`.
        size: Slots of each sink.
        holds: A name in `SCORES`.
    """
    scores_of = SCORES[holds]
    assert scores_of is not None
    due = folded[:, groups] < edge[:, groups]
    if k.device.type == "cpu":
        s, which = due.nonzero(as_tuple=True)
        if not len(s):
            return
        moves = torch.ones_like(s, dtype=torch.bool)
    else:
        s = torch.arange(len(folded), device=k.device).repeat_interleave(len(groups))
        which, moves = torch.arange(len(groups), device=k.device).repeat(len(folded)), due.flatten()
    g, moved = groups[which], moves[:, None]
    block = folded[s, g].long()
    at, fresh = places(base, capacity, s, g, block, size)
    held, mine = position[s, g, : size + BLOCK], score[s, g, : size + BLOCK]
    found = scores_of(k[at])  # right only for blocks that were never in a sink
    old = (block > size // BLOCK)[:, None]
    ranked = torch.cat([torch.where(old, mine[:, :size], found[:, :size]), found[:, size:]], 1)
    origin = torch.cat([torch.where(old, held[:, :size], fresh[:, :size]), fresh[:, size:]], 1)
    ranked = ranked.masked_fill(origin < PINNED, torch.inf)
    order = torch.where(moved, _best_first(ranked, size), torch.arange(size + BLOCK, device=k.device))
    score[s, g, : size + BLOCK] = torch.where(moved, ranked.gather(1, order), mine)
    position[s, g, : size + BLOCK] = torch.where(moved, origin.gather(1, order), held)
    reorder(k, v, at, order)
    folded[s, g] += moves.to(folded.dtype)
    can_undo[s, g] |= moves.to(can_undo.dtype)


def places(base: Tensor, capacity: Tensor, s: Tensor, g: Tensor, block: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the slots of the sink and `block`, and the positions that first lay there: [pairs, size + 64] each."""
    i = torch.arange(size + BLOCK, device=block.device)
    position = torch.where(i < size, i, BLOCK * block[:, None] + i - size)
    sink = torch.full_like(block, size)[:, None]
    return slots(position, sink, base[s, g, None], capacity[s, g, None]), position


def reorder(k: Tensor, v: Tensor, at: Tensor, order: Tensor) -> None:
    """Put the rows in slots `at` [pairs, n] into another order."""
    source = at.gather(1, order)
    k[at], v[at] = k[source], v[source]


def _best_first(score: Tensor, size: int) -> Tensor:
    """Return a permutation of each row: the `size` best in their order, then the others: [pairs, size + 64]."""
    best = winners(score, size)
    lost = torch.ones_like(score, dtype=torch.int8).scatter_(1, best, 0)
    return lost.argsort(stable=True, dim=1)
