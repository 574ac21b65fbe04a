"""Record which tokens the columns of a cache hold, so that a prompt can be compared with what is cached of it."""

from collections.abc import Callable

import torch
from torch import Tensor

UNKNOWN = -1
"""A column given as an embedding."""

MOST = 256
"""Parts before they are joined."""


class Transcript:
    """The token ids of a cache's columns, in the order of the forward calls that brought them.

    It does not see calls in compiled graphs: then it has fewer columns than the cache, and reports no difference.

    Attributes:
        due: Whether the next prompt is to be compared.
    """

    def __init__(self) -> None:
        self.due = False
        self._parts: list[Tensor] = []

    def note(self, ids: Tensor | None, embeddings: Tensor | None, held: int | None) -> None:
        """Add what a forward call brings.

        Args:
            ids: int64 [sequences, new], or None.
            embeddings: [sequences, new, d], where ids are None.
            held: Columns that the cache holds before the call, None where asking would wait for the device. Columns of
                the transcript beyond them were never stored.
        """
        if held is not None and self.width > held:
            self.take_back(self.width - held)
        if ids is None and embeddings is not None:
            ids = torch.full(embeddings.shape[:2], UNKNOWN, dtype=torch.int64, device=embeddings.device)
        if ids is not None:
            self._parts.append(ids.detach().clone())
        if len(self._parts) > MOST:
            self._parts = [torch.cat(self._parts, 1)]

    @property
    def width(self) -> int:
        """The number of columns."""
        return sum(part.shape[1] for part in self._parts)

    def differs(self, ids: Tensor, mask: Tensor | None, held: int) -> bool:
        """Return whether a text is known to begin differently from the `held` cached columns; waits for the device.

        Args:
            ids: The text [sequences, columns].
            mask: bool or integers [sequences, columns], 0 where padded; None where nothing is padded.
            held: Columns that the cache holds.
        """
        if self.width != held or not held or ids.shape[1] < held or len(ids) != len(self._parts[0]):
            return False
        known = torch.cat([part.to(ids.device) for part in self._parts], 1)
        other = (known != ids[:, :held]) & (known != UNKNOWN)
        if mask is not None:
            other &= mask[:, :held].to(ids.device).bool()
        return bool(other.any())

    def take_back(self, columns: int) -> None:
        """Forget the last `columns` columns."""
        while columns > 0 and self._parts:
            last = self._parts.pop()
            if last.shape[1] > columns:
                self._parts.append(last[:, : last.shape[1] - columns])
            columns -= last.shape[1]

    def select(self, choose: Callable[[Tensor], Tensor]) -> None:
        """Apply to the columns a function that selects sequences along the first axis."""
        if self._parts:
            self._parts = [choose(torch.cat(self._parts, 1))]

    def reset(self) -> None:
        """Forget all columns."""
        self._parts.clear()
