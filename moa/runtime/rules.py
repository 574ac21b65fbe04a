"""Hold the rules of one layer, as arrays for the host and as tables for the back-ends."""

import numpy as np
import torch
from torch import Tensor

from moa.kernels.call import Visibility
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, Ints


class Rules:
    """The rules of a layer, one per KV head.

    Attributes:
        reach: The reach of the rules, [kv_heads].
        model: The model that the plan is for.
        moves: Whether the host moves keys into the head's sink as the text grows, bool [kv_heads].
        moving: The patterns of heads whose keys move; empty where there are none.
    """

    def __init__(self, plan: Plan, layer: int) -> None:
        self.reach, self.model, self.moves = plan.reach(layer), plan.model, plan.moves_keys(layer)
        self.moving = tuple(dict.fromkeys(rule.pattern for rule in plan.groups[layer] if rule.moves_keys()))
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def visibility(self, length: int, device: torch.device) -> Visibility:
        """Return what rows see, for all positions below `length` or more."""
        blocks = -(-length // BLOCK)
        tables = self._tables.get(device)
        if tables is None or tables[0].shape[1] < blocks:
            at_least = blocks if tables is None else 2 * tables[0].shape[1]
            first = self.reach.first(np.arange(max(blocks, at_least))).astype(np.int32)
            sink = torch.from_numpy(self.reach.sink.astype(np.int32))
            self._tables[device] = tables = torch.from_numpy(first).to(device), sink.to(device)
        return Visibility(*tables, self.first)

    def first(self, lengths: Ints) -> Ints:
        """Return the first block after the sink seen from position `lengths` [sequences]: [sequences, kv_heads]."""
        return self.reach.first(np.asarray(lengths) // BLOCK).T

    def live_slots(self, lengths: Ints) -> int:
        """Return the slots that hold keys the rules still need, in whole blocks, summed over sequences and groups."""
        return BLOCK * int(self.reach.live_blocks(lengths).sum())

    def reserve(self, lengths: Ints) -> Ints:
        """Return the lengths [sequences] to allocate when slabs must grow to `lengths`: whole blocks, with a reserve.

        Every sequence gets the same number of further blocks, as many as fit in 9/8 of what all need now, so that none
        runs out before the others: copies on growth stay a small share of the work, and memory near what the plan says.
        """
        least = -(-np.asarray(lengths, np.int64) // BLOCK) * BLOCK
        more = np.arange(int(least.max()) // 8 // BLOCK + 1) * BLOCK
        rooms = more[:, None] + least  # [steps, sequences]
        slots = self.reach.cache_blocks(rooms.ravel()).sum(0).reshape(rooms.shape).sum(1)
        return rooms[slots * 8 <= slots[0] * 9][-1]  # type: ignore[no-any-return]

    def capacities(self, lengths: Ints) -> Ints:
        """Return the slots of each slab for texts of `lengths` [sequences]: [sequences, kv_heads], multiples of 64."""
        return BLOCK * self.reach.cache_blocks(lengths).T
