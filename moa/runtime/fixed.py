"""Provide a cache layer of a fixed length: allocated once, free of host synchronisation, fit for `torch.compile`."""

import numpy as np
import torch
from torch import Tensor

from moa.kernels.store import Store, select
from moa.plans.span import Ints
from moa.runtime.layer import PlanLayer
from moa.runtime.rules import Rules
from moa.runtime.text import FixedText, Text


class FixedPlanLayer(PlanLayer):
    """A layer allocated once for texts up to `max_length`; all its state is in tensors that are never reallocated.

    A decode step therefore reads nothing back from the device and can be compiled, as with transformers' `StaticCache`.
    """

    store: Store
    text: FixedText

    def __init__(self, rules: Rules, texts: dict[torch.device, Text], max_length: int) -> None:
        super().__init__(rules, texts)
        self.max_length = max_length

    @property
    def is_compileable(self) -> bool:
        """Whether compiled graphs may hold the layer: false where the host moves keys to the sinks."""
        return not self.rules.moving

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate everything, for the first keys' batch size, dtype and device."""
        super().lazy_initialization(key_states, value_states)
        self._room[:] = self.max_length
        self.rules.visibility(self.max_length, self.device)
        self.store = self._allocate()
        if not torch.compiler.is_compiling():
            for tensor in (self.store.k, self.store.v):
                torch._dynamo.mark_static_address(tensor)

    def _new_text(self, batch: int) -> Text:
        return FixedText(batch, self.device, self.max_length)

    def _longest_past(self) -> Ints:
        return np.full(self.text.batch, self.columns)

    def _make_room(self, lengths: Tensor) -> None:
        pass

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return always the whole length: shapes stay fixed."""
        return self.max_length, 0

    def get_seq_length(self) -> Tensor:
        """Return the columns seen so far, padding counted, on the device."""
        return self.text.width if self.is_initialized else torch.zeros((), dtype=torch.int64)

    def get_max_length(self) -> int:
        """Return the most columns that the layer can hold."""
        return self.max_length

    def reset(self) -> None:
        """Forget the text and keep the memory, zeroed: NaN of a forgotten text would outlive it."""
        self.columns = 0
        if self.is_initialized:
            self.text.reset()
            self._lost[:] = 0
            self._new_sinks(self.text.batch)
            self.store.k.zero_()
            self.store.v.zero_()

    def _select(self, index: Tensor) -> None:
        if len(index) != self.batch_size:
            super()._select(index)
            return
        chosen = select(self.store, index)
        self.store.k.copy_(chosen.k)
        self.store.v.copy_(chosen.v)
        self._lost = self._lost[index.cpu().numpy()]
        if self.sinks is not None:
            self.sinks = self.sinks.select(index)
