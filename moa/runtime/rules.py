"""The rules of one layer, as arrays for the host and as tables for the back-ends."""

import numpy as np
import torch
from torch import Tensor

from moa.kernels.call import Visibility
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, Ints


class Rules:
    """One rule per KV head of a layer.

    Attributes:
        reach: What they see, [kv_heads].
        model: The model that the plan is for.
        moves: Into whose sinks the host moves keys as the text grows, bool [kv_heads].
        moving: The patterns of those; empty where there are none.
    """

    def __init__(self, plan: Plan, layer: int) -> None:
        self.reach, self.model, self.moves = plan.reach(layer), plan.model, plan.moves_keys(layer)
        self.moving = tuple(dict.fromkeys(rule.pattern for rule in plan.groups[layer] if rule.moves_keys()))
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def visibility(self, length: int, device: torch.device) -> Visibility:
        """What rows see, for positions below `length` at least."""
        blocks = -(-length // BLOCK)
        tables = self._tables.get(device)
        if tables is None or tables[0].shape[1] < blocks:
            at_least = blocks if tables is None else 2 * tables[0].shape[1]
            first = self.reach.first(np.arange(max(blocks, at_least))).astype(np.int32)
            sink = torch.from_numpy(self.reach.sink.astype(np.int32))
            self._tables[device] = tables = torch.from_numpy(first).to(device), sink.to(device)
        return Visibility(*tables, self.first)

    def first(self, lengths: Ints) -> Ints:
        """First block besides the sink that the token at position `lengths` [sequences] sees: [sequences, kv_heads]."""
        return self.reach.first(np.asarray(lengths) // BLOCK).T

    def live_slots(self, lengths: Ints) -> int:
        """Slots that hold wanted keys, in whole blocks, summed over sequences and groups."""
        return BLOCK * int(self.reach.live_blocks(lengths).sum())

    def reserve(self, lengths: Ints) -> Ints:
        """Lengths [sequences] to make room for when slabs must grow to `lengths`: whole blocks, and then some.

        All get as many more blocks as fit in 9/8 of what all need now, so that no sequence runs out before the others:
        copies on growth stay a small share of the work, and memory stays near what the plan says.
        """
        least = -(-np.asarray(lengths, np.int64) // BLOCK) * BLOCK
        more = np.arange(int(least.max()) // 8 // BLOCK + 1) * BLOCK
        rooms = more[:, None] + least  # [steps, sequences]
        slots = self.reach.cache_blocks(rooms.ravel()).sum(0).reshape(rooms.shape).sum(1)
        return rooms[slots * 8 <= slots[0] * 9][-1]  # type: ignore[no-any-return]

    def capacities(self, lengths: Ints) -> Ints:
        """Slots that each slab needs for texts of `lengths` [sequences]: [sequences, kv_heads], multiples of 64."""
        return BLOCK * self.reach.cache_blocks(lengths).T
