"""Measure what reading little costs each group that keeps everything, at the rows that decoding would produce."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moa.kernels.paged.effects import effects
from moa.kernels.softmax import Softmax
from moa.plans.patterns import PATTERNS, Variant
from moa.profiler.calibration import Sample

SHARES = (128, 64, 32, 16, 8)
"""Shares of all bytes that are measured, in 1/256: from a half to 1/32."""
ROWS = 128
"""The most rows of a sample that are measured."""


def rows_of(sample: Sample) -> tuple[int, ...]:
    """Return the rows to measure: those that predict response tokens in the sample's second half, or a part of them.

    At the end of a text the shares are of about as many keys as a step reads behind a prompt of that length.
    """
    rows = [i - 1 for i in sample.response if i > len(sample.ids) // 2]
    count = min(len(rows), ROWS)
    return tuple(rows[(i + 1) * len(rows) // count - 1] for i in range(count))


class Effects:
    """The effects of reading little on the rows of one sample, as its backward pass goes through the layers.

    Attributes:
        rows: Number of rows measured.
    """

    def __init__(self, sample: Sample, variants: Sequence[Variant]) -> None:
        each = [PATTERNS[name].given_of(size) for name, size in variants]
        self._given = sorted(set(each))
        self._which = [self._given.index(given) for given in each]
        self._rows = torch.tensor(rows_of(sample))
        self._found: dict[int, Tensor] = {}
        self.rows = len(self._rows)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, softmax: Softmax) -> None:
        """Add what rows lose in one layer that reads the keys of `layer`; arguments as for `Recorder.pulled`."""
        rows = self._rows.to(q.device)
        found = effects(q, k, v, dout, rows=rows, shares=SHARES, given=self._given, softmax=softmax).cpu()
        self._found[layer] = found + self._found[layer] if layer in self._found else found

    def table(self, *, squared: bool) -> npt.NDArray[np.float32]:
        """Return the sums over rows of the effects, or of their squares: [variants, shares, layers, kv_heads]."""
        whole = torch.stack([found for _, found in sorted(self._found.items())], dim=2)
        table: npt.NDArray[np.float32] = (whole.square() if squared else whole).sum(-1).float().numpy()[self._which]
        return table
