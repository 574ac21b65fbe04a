"""Provide a cache layer of fixed length: it is allocated once, never waits for the device, and can be compiled."""

import torch
from torch import Tensor

from moa.kernels.store import Store, select
from moa.runtime.batch import BatchState, FixedBatchState
from moa.runtime.layer import PlanLayer
from moa.runtime.rules import Rules


class FixedPlanLayer(PlanLayer):
    """A layer that is allocated once for `max_length` tokens; all its state is in tensors that keep their address.

    So a decode step reads nothing back from the device and can be compiled, as with transformers' `StaticCache`.
    """

    store: Store
    batch: FixedBatchState

    def __init__(self, rules: Rules, batches: dict[torch.device, BatchState], max_length: int) -> None:
        super().__init__(rules, batches)
        self.max_length = max_length

    @property
    def is_compileable(self) -> bool:
        """Whether compiled graphs may hold the layer: where rows choose pages, if the back-end can do that in them.

        That is known from the first call on, or once a model under a plan generates with the cache.
        """
        return self.rules.reads_in_graphs or not self.rules.reads

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate everything, for the first keys' batch size, dtype and device."""
        super().lazy_initialization(key_states, value_states)
        self._room[:] = self.max_length
        self.rules.visibility(self.max_length, self.device)
        self.store = self._allocate()
        if not torch.compiler.is_compiling():
            for tensor in (*self.store.contents, *(self.sinks.state if self.sinks is not None else ())):
                torch._dynamo.mark_static_address(tensor)

    def _new_batch(self, sequences: int) -> BatchState:
        return FixedBatchState(sequences, self.device, self.max_length)

    def _make_room(self, lengths: Tensor) -> None:
        pass

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return `max_length` and offset 0 at every length, so that shapes stay fixed."""
        return self.max_length, 0

    def get_seq_length(self) -> Tensor:
        """Return the number of columns that this layer holds, padding counted, as a tensor on the device."""
        return self._held_columns() if self.is_initialized else torch.zeros((), dtype=torch.int64)

    def get_max_length(self) -> int:
        """Return the largest number of columns that the layer can hold."""
        return self.max_length

    def reset(self) -> None:
        """Forget all sequences but keep the memory, zeroed: otherwise their NaN could reach later results."""
        self.columns = 0
        if self.is_initialized:
            self.batch.reset()
            self._lost[:] = 0
            if self.sinks is not None:
                self.sinks.reset()
            self.store.k.zero_()
            self.store.v.zero_()

    def _select(self, index: Tensor) -> None:
        if len(index) != self.batch_size:
            super()._select(index)
            return
        chosen = select(self.store, index)
        for mine, theirs in zip(self.store.contents, chosen.contents, strict=True):
            mine.copy_(theirs)
        self._lost = self._lost[index.cpu().numpy()]
        if self.sinks is not None:
            for now, then in zip(self.sinks.state, self.sinks.select(index).state, strict=True):
                now.copy_(then)
