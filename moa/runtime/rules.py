"""The rules of one layer, as arrays for the host and as tables for the back-ends."""

import numpy as np
import torch
from torch import Tensor

from moa.plans.plan import Plan
from moa.plans.span import BLOCK, Ints, cache_blocks, first_block, live_blocks


class Rules:
    """One rule per KV head of a layer.

    Attributes:
        sink: Sink tokens, int64 [kv_heads].
        alpha: Constant part of the span, tokens, int64 [kv_heads].
        beta256: Growth of the span in 1/256ths, int64 [kv_heads].
        model: The model that the plan is for.
        keydiff: Whose sinks hold other keys than the first (`moa.kernels.keydiff`), bool [kv_heads].
        moves_keys: Whether there is any such.
    """

    def __init__(self, plan: Plan, layer: int) -> None:
        self.sink, self.alpha, self.beta256 = plan.rules(layer)
        self.keydiff, self.model = plan.keydiff(layer), plan.model
        self.moves_keys = bool(self.keydiff.any())
        self._tables: dict[torch.device, dict[str, Tensor]] = {}

    def tables(self, length: int, device: torch.device) -> dict[str, Tensor]:
        """The arguments `first` and `sink` of the back-ends, for positions below `length` at least."""
        blocks = -(-length // BLOCK)
        tables = self._tables.get(device)
        if tables is None or tables["first"].shape[1] < blocks:
            at_least = blocks if tables is None else 2 * tables["first"].shape[1]
            first = first_block(*self._columns(), np.arange(max(blocks, at_least))).astype(np.int32)
            sink = torch.from_numpy(self.sink.astype(np.int32))
            self._tables[device] = tables = {"first": torch.from_numpy(first).to(device), "sink": sink.to(device)}
        return tables

    def first(self, lengths: Ints) -> Ints:
        """First block besides the sink that the token at position `lengths` [sequences] sees: [sequences, kv_heads]."""
        return first_block(*self._columns(), np.asarray(lengths) // BLOCK).T

    def live_slots(self, lengths: Ints) -> int:
        """Slots that hold wanted keys, in whole blocks, summed over sequences and groups."""
        return BLOCK * int(live_blocks(*self._columns(), lengths).sum())

    def reserve(self, lengths: Ints) -> Ints:
        """Lengths [sequences] to make room for when slabs must grow to `lengths`: whole blocks, and then some.

        All get as many more blocks as fit in 9/8 of what all need now, so that no sequence runs out before the others:
        copies on growth stay a small share of the work, and memory stays near what the plan says.
        """
        least = -(-np.asarray(lengths, np.int64) // BLOCK) * BLOCK
        more = np.arange(int(least.max()) // 8 // BLOCK + 1) * BLOCK
        rooms = more[:, None] + least  # [steps, sequences]
        slots = cache_blocks(*self._columns(), rooms.ravel()).sum(0).reshape(rooms.shape).sum(1)
        return rooms[slots * 8 <= slots[0] * 9][-1]  # type: ignore[no-any-return]

    def _columns(self) -> tuple[Ints, Ints, Ints]:
        return self.sink[:, None], self.alpha[:, None], self.beta256[:, None]
