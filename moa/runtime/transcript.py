"""Record the token ids of a cache's columns, so that a prompt can be compared with what is cached."""

from collections.abc import Callable

import torch
from torch import Tensor

UNKNOWN = -1
"""Stands for the token id of a column that was given as an embedding."""

MAX_PARTS = 256
"""Number of tensors that are kept before they are joined into one."""


class Transcript:
    """The token ids of a cache's columns, in the order in which forward calls added them.

    Calls in compiled graphs are not recorded: then it has fewer columns than the cache, and reports no difference.

    Attributes:
        check_pending: Whether the next prompt must be compared with the cache.
        width: The number of columns.
    """

    def __init__(self) -> None:
        self.check_pending, self.width = False, 0
        self._parts: list[Tensor] = []

    def append(self, ids: Tensor | None, embeddings: Tensor | None, cached: int | None) -> None:
        """Append the columns of a forward call.

        Args:
            ids: int64 [sequences, new], or None.
            embeddings: [sequences, new, d], used where ids are None.
            cached: Number of columns in the cache before the call; None where reading it would wait for the device. The
                transcript drops further columns of its own, which the cache never stored.
        """
        if cached is not None and self.width > cached:
            self.crop(self.width - cached)
        if ids is None and embeddings is not None:
            ids = torch.full(embeddings.shape[:2], UNKNOWN, dtype=torch.int64, device=embeddings.device)
        if ids is not None:
            self._parts.append(ids.detach().clone())
            self.width += ids.shape[1]
        if len(self._parts) > MAX_PARTS:
            self._parts = [torch.cat(self._parts, 1)]

    def differs(self, ids: Tensor, mask: Tensor | None, cached: int) -> bool:
        """Return whether a text is known to differ from the cached columns where it begins; this waits for the device.

        Args:
            ids: Token ids of the text [sequences, columns].
            mask: bool or integers [sequences, columns], 0 where padded; None where nothing is padded.
            cached: Number of columns in the cache.
        """
        if self.width != cached or not cached or ids.shape[1] < cached or len(ids) != len(self._parts[0]):
            return False
        known = torch.cat([part.to(ids.device) for part in self._parts], 1)
        other = (known != ids[:, :cached]) & (known != UNKNOWN)
        if mask is not None:
            other &= mask[:, :cached].to(ids.device).bool()
        return bool(other.any())

    def crop(self, columns: int) -> None:
        """Remove the last `columns` columns."""
        self.width = max(0, self.width - columns)
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
        """Remove all columns."""
        self._parts.clear()
        self.width = 0
