"""What all layers of a cache know alike, kept once per device: lengths, padding, and the forward call under way.

The first layer that a forward call reaches on a device, the leader, opens the call: it checks the mask, packs the
batch, and advances the lengths once its own keys are stored. The other layers take what it found.
"""

from dataclasses import dataclass
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
class Call:
    """One forward call, for the layers of one device.

    Attributes:
        mask: As the leader got it.
        real: bool [sequences, new], false where padded; None when nothing is.
        packing: Where the real tokens lie.
        tokens: New tokens, int64 [sequences], or the same number of each.
        lengths: int64 [sequences] on the device, tokens held before.
        longest: No text gets longer than this in the call.
    """

    mask: Tensor | None
    real: Tensor | None
    packing: Packing
    tokens: Tensor | int
    lengths: Tensor
    longest: int


class Text:
    """The texts of a batch, which grow without limit.

    Attributes:
        batch: Sequences.
        width: Columns seen so far, padding counted, as transformers counts.
        lengths: int64 [sequences] on the device, true lengths.
        held: Lengths before the latest call, on the host, or an upper bound of them.
        written: Lengths up to which that call writes slabs.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.batch, self.device = batch, device
        self.width: Any = 0
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.held = self.written = self._now = self._next = np.zeros(batch, np.int64)
        self._real: Tensor | None = None  # bool [sequences, columns], false where padded; None: nothing ever was
        self._call: Call | None = None
        self._singles = self._one_each()

    def _one_each(self) -> Tensor:
        with torch.inference_mode(False):
            return torch.arange(self.batch + 1, dtype=torch.int32, device=self.device)

    def open(self, mask: Tensor | None, new: int) -> Call:
        """The call that brings `new` columns, for the leader; nothing changes before `close`.

        Args:
            mask: bool [sequences, past + new columns], false where padded; None when no new token is.
            new: New columns.

        Raises:
            Unsupported: The mask has another shape, or tells of the past what is not so; the text gets too long.
        """
        real = self._new_columns(mask, new)
        packing = Packing(real, self.batch, new, self.device, self._singles if new == 1 else None)
        tokens = new if real is None else real.sum(1)
        longest = self._admit(tokens, new)
        self._call = Call(mask, real, packing, tokens, self._before(), longest)
        return self._call

    def close(self, call: Call, new: int) -> None:
        """Advance by the call that the leader opened; the other layers still attend to the texts as they were."""
        self._note(call.real, new)
        self._add(call.tokens, new)

    def join(self, mask: Tensor | None, new: int) -> Call:
        """The call that the leader opened, for another layer, which must have got the same mask."""
        call = self._call
        assert call is not None
        if mask is not call.mask:
            if mask is None or call.mask is None or mask.shape != call.mask.shape:
                raise Unsupported(OTHER_MASK)
            self._require((mask == call.mask).all(), OTHER_MASK, new)
        return call

    def _require(self, holds: Tensor, otherwise: str, new: int) -> None:
        """Raise Unsupported unless `holds`; where asking would cost a wait, let the device do it."""
        if not self.may_wait(new):
            torch._assert_async(holds, otherwise)
        elif not holds:
            raise Unsupported(otherwise)

    def may_wait(self, new: int) -> bool:
        """Whether reading device values is free: on the CPU always, elsewhere not in a decode step."""
        return self.device.type == "cpu" or new > 1

    def _new_columns(self, mask: Tensor | None, new: int) -> Tensor | None:
        """The mask's last `new` columns, after checking that the rest tells what was stored."""
        if mask is None:
            return None
        if mask.shape != (self.batch, self.width + new):
            raise Unsupported(
                f"the attention mask must have {self.batch} rows and {self.width} cached + {new} new columns, "
                f"found {tuple(mask.shape)}"
            )
        if self.width:
            past = mask[:, : self.width]
            self._require(past.all() if self._real is None else (past == self._real).all(), OTHER_PAST, new)
        return mask[:, self.width :]

    def _admit(self, tokens: Tensor | int, new: int) -> int:
        """Note on the host how long the texts become; the longest."""
        count = tokens.cpu().numpy() if isinstance(tokens, Tensor) and self.may_wait(new) else new
        self.held, self._next = self._now, self._now + count
        self.written = self.held + 1 if new == 1 else self._next  # a padded token of a single column is written too
        return int(self.written.max())

    def _before(self) -> Tensor:
        """`lengths` as a tensor that `close` leaves alone."""
        return self.lengths

    def _note(self, real: Tensor | None, new: int) -> None:
        if self._real is not None or real is not None:
            past, now = (
                torch.ones(self.batch, columns, dtype=torch.bool, device=self.device) if x is None else x
                for x, columns in ((self._real, self.width), (real, new))
            )
            self._real = torch.cat([past, now], 1)

    def _add(self, tokens: Tensor | int, new: int) -> None:
        self.lengths = self.lengths + tokens
        self._now = self._next
        self.width += new

    def host_lengths(self) -> Ints:
        """True lengths, read back."""
        return self.lengths.cpu().numpy().copy()

    def tokens_in_last(self, columns: int) -> Ints:
        """Real tokens in the last `columns`."""
        if self._real is None:
            return np.full(self.batch, columns, np.int64)
        width = int(self.width)
        return self._real[:, width - columns : width].sum(1).cpu().numpy()

    def take_back(self, columns: int) -> None:
        """Forget the last `columns`."""
        self._now = self.host_lengths() - self.tokens_in_last(columns)
        self.lengths = torch.from_numpy(self._now).to(self.device)
        self.width -= columns
        if self._real is not None:
            self._real = self._real[:, : self.width]

    def select(self, index: Tensor) -> None:
        """Let sequence i become a copy of sequence `index[i]`; the batch may change."""
        self.lengths = self.lengths[index]
        self._real = None if self._real is None else self._real[index]
        self._now = self._now[index.cpu().numpy()]
        if len(index) != self.batch:
            self.batch = len(index)
            self._singles = self._one_each()


class FixedText(Text):
    """The texts of a batch up to `max_length` columns; all state lives in tensors that keep their place."""

    _real: Tensor

    def __init__(self, batch: int, device: torch.device, max_length: int) -> None:
        super().__init__(batch, device)
        self.max_length = max_length
        with torch.inference_mode(False):
            self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
            self._old = torch.zeros(batch, dtype=torch.int64, device=device)
            self._real = torch.zeros(batch, max_length, dtype=torch.bool, device=device)
            self.width = torch.zeros((), dtype=torch.int64, device=device)
        if not torch.compiler.is_compiling():
            for tensor in (self.lengths, self._old, self._real, self.width, self._singles):
                torch._dynamo.mark_static_address(tensor)

    def may_wait(self, new: int) -> bool:
        """As for a growing text, and not inside a compiled graph."""
        return super().may_wait(new) and not torch.compiler.is_compiling()

    def _new_columns(self, mask: Tensor | None, new: int) -> Tensor | None:
        if mask is None:
            return None
        if mask.shape != (self.batch, self.max_length):
            raise Unsupported(
                f"the attention mask must have {self.batch} rows and at most {self.max_length} columns, "
                f"found {tuple(mask.shape)}"
            )
        past = torch.arange(self.max_length, device=self.device) < self.width
        self._require(((mask == self._real) | ~past).all(), OTHER_PAST, new)
        return mask.index_select(1, self._columns(new))

    def _admit(self, tokens: Tensor | int, new: int) -> int:
        if not self.may_wait(new):
            torch._assert_async(self.width + new <= self.max_length, "the text is longer than max_length")
        elif int(self.width) + new > self.max_length:
            raise Unsupported(f"{int(self.width)} + {new} tokens, but the cache has max_length {self.max_length}")
        return self.max_length

    def _before(self) -> Tensor:
        return self._old.copy_(self.lengths)

    def _note(self, real: Tensor | None, new: int) -> None:
        if real is None:
            self._real.index_fill_(1, self._columns(new), True)
        else:
            self._real.index_copy_(1, self._columns(new), real)

    def _add(self, tokens: Tensor | int, new: int) -> None:
        self.lengths.add_(tokens)
        self.width.add_(new)

    def _columns(self, new: int) -> Tensor:
        width: Tensor = self.width
        return width + torch.arange(new, device=self.device)

    def reset(self) -> None:
        """Forget the texts."""
        for tensor in (self.lengths, self._real, self.width):
            tensor.zero_()

    def take_back(self, columns: int) -> None:
        """Forget the last `columns`."""
        self.lengths.copy_(torch.from_numpy(self.host_lengths() - self.tokens_in_last(columns)))
        self.width.sub_(columns)

    def select(self, index: Tensor) -> None:
        """Let sequence i become a copy of sequence `index[i]`; tensors move only when the batch changes."""
        if len(index) != self.batch:
            with torch.inference_mode(False):
                super().select(index)
                self._old = torch.zeros_like(self.lengths)
            return
        self.lengths.copy_(self.lengths[index])
        self._real.copy_(self._real[index])
