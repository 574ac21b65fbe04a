"""List the equal pieces into which decode cuts slabs, so that a long head and many short ones fill a device alike."""

from typing import NamedTuple

import torch
from torch import Tensor

from moa.kernels.store import Store
from moa.plans.span import BLOCK

PIECES_PER_PROCESSOR = 8  # enough waves that the last, partly filled one costs little
SMALLEST_PIECE = 4  # blocks; below it the partial results cost more than the balance gains


class Pieces(NamedTuple):
    """The flat list of equal pieces of a store."""

    items: Tensor
    """int32 [pieces, 2]: sequence * kv_heads + group, and the piece's index in its slab."""
    size: int
    """Blocks of a piece."""
    most: int
    """Pieces of the largest slab."""


def pieces(store: Store) -> Pieces:
    """Return the piece list of a store, made once and without a host sync.

    Slabs without slots have no piece.
    """
    if "pieces" not in store.scratch:
        total = store.k.shape[0] // BLOCK
        size = max(SMALLEST_PIECE, -(-total // (PIECES_PER_PROCESSOR * processors(store.k.device))))
        lists, most = [store.order.new_empty(0, 2)], 1  # there may be no slab with slots
        for run in reversed(store.runs):  # whole pieces first, those of slabs smaller than one last
            each = max(1, -(-run.slots // (BLOCK * size)))
            index = torch.arange(each, device=run.pairs.device).expand(len(run.pairs), -1)
            lists.append(torch.stack([run.pairs[:, None].expand_as(index), index], -1).reshape(-1, 2))
            most = max(most, each)
        store.scratch["pieces"] = Pieces(torch.cat(lists).to(torch.int32), size, most)
    found: Pieces = store.scratch["pieces"]
    return found


def processors(device: torch.device) -> int:
    """Return the device's number of multiprocessors; a few under the interpreter, so that small tests split too."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
