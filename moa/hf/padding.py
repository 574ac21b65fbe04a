"""Convert transformers' padded batches to the packed tokens that back-ends take, and back."""

import torch
from torch import Tensor


class Packing:
    """The positions of the real tokens of a padded batch.

    A batch with one column is never packed: padded tokens are computed like real ones, and zeroed in the result. This
    needs no shape that depends on data, so a decode step neither waits for the device nor breaks a compiled graph. The
    key that a padded token leaves in its slab is overwritten by the next real token before anything reads it.

    Attributes:
        cu_seqlens: int32 [sequences + 1], packed offset of each sequence's tokens.
    """

    def __init__(
        self, real: Tensor | None, batch: int, width: int, device: torch.device, cu_seqlens: Tensor | None = None
    ) -> None:
        """Find the positions of the real tokens.

        Args:
            real: bool [batch, width], false where padded; None when nothing is padded.
            batch: Number of sequences.
            width: Number of columns.
            device: Device of the result.
            cu_seqlens: The numbers 0 to batch, if the caller has them already; for a width of 1.
        """
        self._shape = (batch, width)
        self._real = real
        self._index: Tensor | None = None
        if cu_seqlens is not None:
            self.cu_seqlens = cu_seqlens
        elif real is None or width == 1:
            self.cu_seqlens = torch.arange(0, (batch + 1) * width, width, dtype=torch.int32, device=device)
        else:
            self._index = real.flatten().nonzero()[:, 0]
            self.cu_seqlens = torch.nn.functional.pad(real.sum(1).cumsum(0), (1, 0)).to(torch.int32)

    def pack(self, x: Tensor) -> Tensor:
        """Return [tokens, heads, D], packed from [batch, heads, width, D]."""
        if self._shape[1] == 1:
            return x.squeeze(2)
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self._index is None else flat[self._index]

    def unpack(self, x: Tensor) -> Tensor:
        """Return [batch, width, heads, D], unpacked from [tokens, heads, D]; 0 where padded."""
        batch, width = self._shape
        if self._index is not None:
            x = x.new_zeros(batch * width, *x.shape[1:]).index_copy(0, self._index, x)
        out = x.unsqueeze(1) if width == 1 else x.view(batch, width, *x.shape[1:])
        return out if self._real is None else out.masked_fill(~self._real[..., None, None], 0)
