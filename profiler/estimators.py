"""Estimate the harm of a cut from a tile of attention, with one small function per estimator.

Every function maps a `Tile` to [sinks, rows, edges]: what the cut at each edge costs at each row, the heads of the
group taken together. `fisher` and `effect` are what sources use by default; docs/influence.md says which and why, and
how all rank against the truth.
"""

from torch import Tensor

from moa.kernels.influence import Estimator, Tile, change
from moa.profiler.calibration import ESTIMATORS as NAMES

ROUNDING = 1e-6
"""Least value of 1 - A: where one weight is nearly everything, float32 rounds the difference."""


def fisher(tile: Tile) -> Tensor:
    """Return the squared first-order effect of the whole, renormalised cut, summed over the group's heads first.

    delta_i = sum_h [(sum_kept A dP) / (sum_kept A) - D_i], where a learned sink adds to the sum of A alone.
    With labels drawn from the model, the sum of its squares over 2T estimates the KL divergence the cut causes (a
    Fisher, or Gauss-Newton, quadratic form).
    """
    return _delta(tile).square()


def effect(tile: Tile) -> Tensor:
    """Return the first-order effect of the whole, renormalised cut, with its sign: delta_i of `fisher`, not squared.

    For a loss whose gradient means something by itself, such as the margin of a known answer. Rows that the cut helps
    offset rows that it harms.
    """
    return _delta(tile)


def first_order(tile: Tile) -> Tensor:
    """Return the paper's signed influence: Taylor terms per entry, summed over the cut (arXiv 2406.14909, eq. 4)."""
    return _cut(tile, _taylor(tile))


def first_order_abs(tile: Tile) -> Tensor:
    """Return the influence of the paper's published code: absolute per-entry Taylor terms summed over the cut."""
    return _cut(tile, _taylor(tile).abs())


def mass(tile: Tile) -> Tensor:
    """Return the attention mass that the cut drops; it needs no gradient."""
    return _cut(tile, tile.a)


def _delta(tile: Tile) -> Tensor:
    """Return the first-order change of the loss when each row keeps only the cut's keys: [sinks, rows, edges]."""
    delta: Tensor = change(tile.kept(tile.a) + tile.sunk, tile.kept(tile.a * tile.dp), tile.d).sum(1)
    return delta


def _taylor(tile: Tile) -> Tensor:
    """Return the change of the loss when one entry is masked and its row renormalised: A (D - dP) / (1 - A)."""
    return tile.a * (tile.d - tile.dp) / (1 - tile.a).clamp_min(ROUNDING)


def _cut(tile: Tile, x: Tensor) -> Tensor:
    """Return the sum of `x` over dropped keys and over the group's heads."""
    return (x.sum(-1, keepdim=True) - tile.kept(x)).sum(1)


ESTIMATORS: dict[str, Estimator] = dict(zip(NAMES, (fisher, effect, first_order, first_order_abs, mass), strict=True))
