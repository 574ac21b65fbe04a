"""Hold what all cache layers on one device share: lengths, padding mask, and the forward call under way.

The first layer that a forward call reaches begins the call: it checks the attention mask, packs the batch and, once its
own keys are stored, advances the lengths. The other layers of the device join the call and use what it found.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moa.hf.padding import Packing
from moa.plans.errors import Unsupported
from moa.plans.span import Ints

OTHER_MASK = "layers got different attention masks in one forward call"
OTHER_PAST = (
    "the attention mask hides or shows other past tokens than when they were stored: pass the earlier columns as they "
    "were, or reset the cache and pass the whole text, as for rows that ended early and are masked afterwards"
)


@dataclass
class ForwardCall:
    """One forward call of the model, as the layers of one device see it.

    Attributes:
        mask: The attention mask that the first layer got.
        real: bool [sequences, new], false where padded; None when nothing is padded.
        packing: The positions of the real tokens.
        tokens: Number of new tokens of each sequence, int64 [sequences], or one number that holds for all.
        lengths: Lengths before the call, int64 [sequences], on the device.
        longest: Upper bound of every sequence's length after the call.
        new: Number of new columns.
    """

    mask: Tensor | None
    real: Tensor | None
    packing: Packing
    tokens: Tensor | int
    lengths: Tensor
    longest: int
    new: int

    @cached_property
    def on_host(self) -> tuple[Ints, Ints]:
        """The lengths before the call and the new tokens of each sequence; the first layer that asks waits for them."""
        before = self.lengths.cpu().numpy().copy()
        tokens = self.tokens.cpu().numpy() if isinstance(self.tokens, Tensor) else np.full(len(before), self.tokens)
        return before, tokens


class BatchState:
    """The lengths and the padding mask of a batch of sequences that grow without limit.

    Attributes:
        size: Number of sequences.
        width: Columns seen so far, padding counted, as transformers counts.
        lengths: True lengths, int64 [sequences], on the device.
        past_lengths: Lengths before the latest call, or upper bounds of them, int64 [sequences], on the host.
        written_lengths: Lengths up to which the latest call writes into slabs, int64 [sequences], on the host.
        counted: The latest call whose columns `width` counts.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device
        self.width: Any = 0
        self.lengths = torch.zeros(size, dtype=torch.int64, device=device)
        # Upper bounds of the lengths, known on the host without a wait: now, and after the call under way.
        self._bounds = self._next_bounds = np.zeros(size, np.int64)
        self.past_lengths = self.written_lengths = self._bounds
        self._real: Tensor | None = None  # bool [sequences, columns], false where padded; None: nothing was padded yet
        self._call: ForwardCall | None = None
        self.counted: ForwardCall | None = None
        self._single_offsets = self._make_single_offsets()

    def _make_single_offsets(self) -> Tensor:
        """Return `cu_seqlens` of a decode step: one new token per sequence."""
        with torch.inference_mode(False):
            return torch.arange(self.size + 1, dtype=torch.int32, device=self.device)

    def begin(self, mask: Tensor | None, new: int) -> ForwardCall:
        """Return the forward call that brings `new` columns; the first layer asks. Nothing advances before `end`.

        Args:
            mask: bool [sequences, past + new columns], false where padded; None when no new token is.
            new: Number of new columns.

        Raises:
            Unsupported: The mask has a wrong shape or contradicts the stored padding, or a sequence gets too long.
        """
        real = self._new_columns(mask, new)
        packing = Packing(real, self.size, new, self.device, self._single_offsets if new == 1 else None)
        tokens = new if real is None else real.sum(1)
        longest = self._longest_after(tokens, new)
        self._call = ForwardCall(mask, real, packing, tokens, self._lengths_before(), longest, new)
        return self._call

    def end(self, call: ForwardCall, new: int) -> None:
        """Advance lengths and padding past a call; the other layers still read the lengths before it from the call."""
        self._append_padding(call.real, new)
        self._advance(call.tokens, new)
        self.counted = call

    def join(self, mask: Tensor | None, new: int) -> ForwardCall:
        """Return the call that the first layer began, for another layer, which must have got the same mask.

        Raises:
            Unsupported: The mask differs from the first layer's.
        """
        call = self._call
        assert call is not None
        if mask is not call.mask:
            if mask is None or call.mask is None or mask.shape != call.mask.shape:
                raise Unsupported(OTHER_MASK)
            self._require((mask == call.mask).all(), OTHER_MASK, new)
        return call

    def _require(self, holds: Tensor, otherwise: str, new: int) -> None:
        """Raise Unsupported unless `holds`; where reading it would wait for the device, the device asserts it."""
        if not self.may_sync(new):
            torch._assert_async(holds, otherwise)
        elif not holds:
            raise Unsupported(otherwise)

    def may_sync(self, new: int) -> bool:
        """Return whether the host may wait for values of the device: on the CPU always, elsewhere not in decode."""
        return self.device.type == "cpu" or new > 1

    def _new_columns(self, mask: Tensor | None, new: int) -> Tensor | None:
        """Return the mask's last `new` columns, after checking the earlier ones against the stored padding."""
        if mask is None:
            return None
        if mask.shape != (self.size, self.width + new):
            raise Unsupported(
                f"the attention mask must have {self.size} rows and {self.width} cached + {new} new columns, "
                f"found {tuple(mask.shape)}"
            )
        if self.width:
            past = mask[:, : self.width]
            self._require(past.all() if self._real is None else (past == self._real).all(), OTHER_PAST, new)
        return mask[:, self.width :]

    def _longest_after(self, tokens: Tensor | int, new: int) -> int:
        """Update the bounds on the host; return the largest length that the call writes."""
        count = tokens.cpu().numpy() if isinstance(tokens, Tensor) and self.may_sync(new) else new
        self.past_lengths, self._next_bounds = self._bounds, self._bounds + count
        # A padded token of a single column is written too (`Packing`).
        self.written_lengths = self.past_lengths + 1 if new == 1 else self._next_bounds
        return int(self.written_lengths.max())

    def _lengths_before(self) -> Tensor:
        """Return the lengths as a tensor that `end` does not change."""
        return self.lengths

    def _append_padding(self, real: Tensor | None, new: int) -> None:
        if self._real is not None or real is not None:
            past, now = (
                torch.ones(self.size, columns, dtype=torch.bool, device=self.device) if x is None else x
                for x, columns in ((self._real, self.width), (real, new))
            )
            self._real = torch.cat([past, now], 1)

    def _advance(self, tokens: Tensor | int, new: int) -> None:
        self.lengths = self.lengths + tokens
        self._bounds = self._next_bounds
        self.width += new

    def host_lengths(self) -> Ints:
        """Return the true lengths, int64 [sequences], read back from the device."""
        return self.lengths.cpu().numpy().copy()

    def tokens_in_last(self, columns: int) -> Ints:
        """Return how many of each sequence's last `columns` are real tokens, int64 [sequences]."""
        if self._real is None:
            return np.full(self.size, columns, np.int64)
        width = int(self.width)
        return self._real[:, width - columns : width].sum(1).cpu().numpy()

    def crop(self, columns: int) -> None:
        """Remove the last `columns` columns."""
        self._bounds = self.host_lengths() - self.tokens_in_last(columns)
        self.lengths = torch.from_numpy(self._bounds).to(self.device)
        self.width -= columns
        if self._real is not None:
            self._real = self._real[:, : self.width]

    def select(self, index: Tensor) -> None:
        """Let sequence i become a copy of sequence `index[i]`; the number of sequences may change."""
        self.lengths = self.lengths[index]
        self._real = None if self._real is None else self._real[index]
        self._bounds = self._bounds[index.cpu().numpy()]
        if len(index) != self.size:
            self.size = len(index)
            self._single_offsets = self._make_single_offsets()


class FixedBatchState(BatchState):
    """The same for sequences of up to `max_length` columns; all state lives in tensors that keep their address."""

    _real: Tensor

    def __init__(self, size: int, device: torch.device, max_length: int) -> None:
        super().__init__(size, device)
        self.max_length = max_length
        with torch.inference_mode(False):
            self.lengths = torch.zeros(size, dtype=torch.int64, device=device)
            self._old = torch.zeros(size, dtype=torch.int64, device=device)
            self._real = torch.zeros(size, max_length, dtype=torch.bool, device=device)
            self.width = torch.zeros((), dtype=torch.int64, device=device)
        if not torch.compiler.is_compiling():
            for tensor in (self.lengths, self._old, self._real, self.width, self._single_offsets):
                torch._dynamo.mark_static_address(tensor)

    def may_sync(self, new: int) -> bool:
        """Return the same as for sequences that grow, and false inside a compiled graph."""
        return super().may_sync(new) and not torch.compiler.is_compiling()

    def _new_columns(self, mask: Tensor | None, new: int) -> Tensor | None:
        if mask is None:
            return None
        if mask.shape != (self.size, self.max_length):
            raise Unsupported(
                f"the attention mask must have {self.size} rows and at most {self.max_length} columns, "
                f"found {tuple(mask.shape)}"
            )
        past = torch.arange(self.max_length, device=self.device) < self.width
        self._require(((mask == self._real) | ~past).all(), OTHER_PAST, new)
        return mask.index_select(1, self._columns(new))

    def _longest_after(self, tokens: Tensor | int, new: int) -> int:
        if not self.may_sync(new):
            torch._assert_async(self.width + new <= self.max_length, "the text is longer than max_length")
        elif int(self.width) + new > self.max_length:
            raise Unsupported(f"{int(self.width)} + {new} tokens, but the cache has max_length {self.max_length}")
        return self.max_length

    def _lengths_before(self) -> Tensor:
        return self._old.copy_(self.lengths)

    def _append_padding(self, real: Tensor | None, new: int) -> None:
        if real is None:
            self._real.index_fill_(1, self._columns(new), True)
        else:
            self._real.index_copy_(1, self._columns(new), real)

    def _advance(self, tokens: Tensor | int, new: int) -> None:
        self.lengths.add_(tokens)
        self.width.add_(new)

    def _columns(self, new: int) -> Tensor:
        width: Tensor = self.width
        return width + torch.arange(new, device=self.device)

    def reset(self) -> None:
        """Set all sequences to length 0."""
        for tensor in (self.lengths, self._real, self.width):
            tensor.zero_()

    def crop(self, columns: int) -> None:
        """Remove the last `columns` columns."""
        self.lengths.copy_(torch.from_numpy(self.host_lengths() - self.tokens_in_last(columns)))
        self.width.sub_(columns)

    def select(self, index: Tensor) -> None:
        """Let sequence i become a copy of sequence `index[i]`; new tensors are made only for another batch size."""
        if len(index) != self.size:
            with torch.inference_mode(False):
                super().select(index)
                self._old = torch.zeros_like(self.lengths)
            return
        self.lengths.copy_(self.lengths[index])
        self._real.copy_(self._real[index])
