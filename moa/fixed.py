"""A cache layer of a fixed length: allocated once, free of host synchronisation, fit for `torch.compile`."""

import torch
from torch import Tensor

from moa.kernels.store import Store, select
from moa.layer import PlanLayer
from moa.plans.errors import Unsupported
from moa.rules import Rules


class FixedPlanLayer(PlanLayer):
    """A layer allocated once for texts up to `max_length`; all state lives in tensors that keep their place.

    So a decode step reads nothing back from the device and can be compiled, as with transformers' `StaticCache`.
    """

    is_compileable = True
    store: Store
    _real: Tensor

    def __init__(self, rules: Rules, max_length: int) -> None:
        super().__init__(rules)
        self.max_length = max_length
        self.width = torch.zeros((), dtype=torch.int64)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate everything, for the first keys' batch size, dtype and device."""
        super().lazy_initialization(key_states, value_states)
        self._room[:] = self.max_length
        self.store = self._allocate()
        with torch.inference_mode(False):
            self.lengths = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
            self._real = torch.zeros(self.batch_size, self.max_length, dtype=torch.bool, device=self.device)
            self.width = torch.zeros((), dtype=torch.int64, device=self.device)
        if not torch.compiler.is_compiling():
            for tensor in (self.store.k, self.store.v, self.lengths, self._real, self.width):
                torch._dynamo.mark_static_address(tensor)

    def _new_columns(self, mask: Tensor | None, new: int) -> Tensor | None:
        if mask is None:
            return None
        if mask.shape != (self.batch_size, self.max_length):
            raise Unsupported(
                f"the attention mask must have {self.batch_size} rows and at most {self.max_length} columns, "
                f"found {tuple(mask.shape)}"
            )
        if self.may_wait(new) and not torch.equal(mask[:, : int(self.width)], self._real[:, : int(self.width)]):
            raise Unsupported("the attention mask hides or shows other past tokens than when they were stored")
        return mask.index_select(1, self._columns(new))

    def _admit(self, tokens: Tensor | int, new: int) -> int:
        if not self.may_wait(new):
            torch._assert_async(self.width + new <= self.max_length, "the text is longer than max_length")
        elif int(self.width) + new > self.max_length:
            raise Unsupported(f"{int(self.width)} + {new} tokens, but the cache has max_length {self.max_length}")
        return self.max_length

    def _make_room(self) -> None:
        pass

    def _advance(self, tokens: Tensor | int, real: Tensor | None, new: int) -> None:
        if real is None:
            real = torch.ones(self.batch_size, new, dtype=torch.bool, device=self.device)
        self._real.index_copy_(1, self._columns(new), real)
        self.lengths.add_(tokens)
        self.width.add_(new)

    def _columns(self, new: int) -> Tensor:
        width: Tensor = self.width
        return width + torch.arange(new, device=self.device)

    def may_wait(self, new: int) -> bool:
        """As for a growing layer, and not inside a compiled graph."""
        return super().may_wait(new) and not torch.compiler.is_compiling()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Always the whole length: shapes stay fixed."""
        return self.max_length, 0

    def get_max_length(self) -> int:
        """The most columns it can hold."""
        return self.max_length

    def reset(self) -> None:
        """Forget the text, keep the memory."""
        if self.is_initialized:
            for tensor in (self.lengths, self._real, self.width):
                tensor.zero_()
            self._lost[:] = 0

    def _take_back(self, columns: int) -> None:
        self.lengths.copy_(torch.from_numpy(self._lengths() - self._tokens_in_last(columns)))
        self.width.sub_(columns)
        self._real[:, int(self.width) :] = False

    def _select(self, index: Tensor) -> None:
        if len(index) != self.batch_size:
            super()._select(index)
            return
        chosen = select(self.store, index)
        for tensor, new in (
            (self.store.k, chosen.k),
            (self.store.v, chosen.v),
            (self.lengths, self.lengths[index]),
            (self._real, self._real[index]),
        ):
            tensor.copy_(new)
        self._lost = self._lost[index.cpu().numpy()]
