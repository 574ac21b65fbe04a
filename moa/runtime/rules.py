"""Hold the rules of one layer: as arrays for the host, and as tables on the device for the back-ends."""

from collections.abc import Collection

import numpy as np
import torch

from moa.kernels.call import Reading, Visibility
from moa.kernels.registry import reads_in_graphs
from moa.plans.errors import Unsupported
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, Ints


class Rules:
    """The rules of a layer, one per KV head.

    Attributes:
        reach: The spans of the rules as functions of length, [kv_heads].
        model: The model that the plan is for.
        readers: The number of layers that read the layer's keys, itself included.
        holds: Which keys the head's sink holds, names in `moa.plans.span.HOLDS`, [kv_heads].
        moves_keys: Whether keys move into a head's sink.
        reads: Whether a head reads less than it keeps, so that the layer's keys have summaries.
        reads_in_graphs: Whether the back-ends, as far as they are known, read less than is kept in compiled graphs too.
        latent: Whether the layer caches latents, which are key and value at once.
    """

    def __init__(self, plan: Plan, layer: int) -> None:
        self.reach, self.model, self.holds = plan.reach(layer), plan.model, plan.holds(layer)
        self.readers = int(plan.model.readers[plan.model.ruled_layers.index(layer)])
        self.moves_keys = any(rule.moves_keys() for rule in plan.groups[layer])
        self.reads, self.latent = plan.reads(layer), plan.model.latent is not None
        self.reads_in_graphs = False
        self._share, self._given = ([getattr(r, x) for r in plan.groups[layer]] for x in ("read256", "given"))
        self._tables: dict[torch.device, Visibility] = {}
        self._readings: dict[torch.device, Reading] = {}

    def visibility(self, length: int, device: torch.device) -> Visibility:
        """Return tables of what each query sees, for all positions below `length` and perhaps beyond."""
        blocks = -(-length // BLOCK)
        tables = self._tables.get(device)
        if tables is None or tables.first.shape[1] < blocks:
            at_least = blocks if tables is None else 2 * tables.first.shape[1]
            first = self.reach.first(np.arange(max(blocks, at_least))).astype(np.int32)
            sink = torch.from_numpy(self.reach.sink.astype(np.int32))
            self._tables[device] = tables = Visibility(torch.from_numpy(first).to(device), sink.to(device))
        return tables

    def reading(self, device: torch.device) -> Reading | None:
        """Return how much rows read; None where all read what they see."""
        if self.reads and device not in self._readings:
            share, given = (torch.tensor(x, dtype=torch.int32, device=device) for x in (self._share, self._given))
            self._readings[device] = Reading(share, given)
        return self._readings.get(device)

    def serve(self, backends: Collection[str]) -> None:
        """Learn by which back-ends the layer is read.

        Raises:
            Unsupported: A compiled graph of a back-end that cannot read less than is kept in it.
        """
        if not self.reads:
            return
        able = all(map(reads_in_graphs, backends))
        if not torch.compiler.is_compiling():
            self.reads_in_graphs = able
        elif not able:
            raise Unsupported(
                f"rules that read less than they keep inside a compiled graph of back-end {', '.join(backends)}: "
                "run the model uncompiled"
            )

    def first(self, lengths: Ints) -> Ints:
        """Return the first block after the sink that queries at positions `lengths` see, [sequences, kv_heads]."""
        return self.reach.first(np.asarray(lengths) // BLOCK).T

    def live_slots(self, lengths: Ints) -> int:
        """Return how many slots hold keys that the rules still need, in whole blocks, over all sequences and groups."""
        return BLOCK * int(self.reach.live_blocks(lengths).sum())

    def reserve(self, lengths: Ints) -> Ints:
        """Return the lengths [sequences] to allocate for when slabs must grow to `lengths`: whole blocks and a reserve.

        Every sequence gets the same number of further blocks, as many as fit into 9/8 of the memory needed now, so that
        no sequence runs out before the others. Slabs are then copied rarely, and memory stays near the plan's figure.
        """
        least = -(-np.asarray(lengths, np.int64) // BLOCK) * BLOCK
        more = np.arange(int(least.max()) // 8 // BLOCK + 1) * BLOCK
        rooms = more[:, None] + least  # [steps, sequences]
        slots = self.reach.cache_blocks(rooms.ravel()).sum(0).reshape(rooms.shape).sum(1)
        return rooms[slots * 8 <= slots[0] * 9][-1]  # type: ignore[no-any-return]
