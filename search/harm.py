"""Compute the harm of every rule in every group from a profile's cut tables."""

import numpy as np
import numpy.typing as npt

from moa.plans.span import BLOCK, Floats
from moa.profiler.profile import Cut, Profile, bin_size
from moa.search.grid import Grid


def harm(profile: Profile, grid: Grid, cut: Cut, length: int | None = None) -> Floats:
    """Return the harm of every rule in every group, by one source at one length: [groups, rules], layer by layer.

    harm(rule) = sum over rows of cut[row, edge of the rule at that row] / T, in the loss's unit per response token. The
    estimator `fisher` is a quadratic form, of which harm is half. The table is made monotone first.

    Args:
        profile: The profile.
        grid: The rules.
        cut: Source and length of the table.
        length: Tokens of a longer text, at which nothing was measured. Its rows up to the table's length are as
            measured. Each further row is assumed to lose what rows of the table's last quarter lose on average under a
            window of the same share of the text.
    """
    return _look(profile, grid, cut, monotone(profile.cuts[cut]), length=length)


def slope(profile: Profile, grid: Grid, cut: Cut) -> Floats:
    """Return harm with its sign, as measured: how cuts of full attention change the loss, to first order.

    A running maximum would count noise as harm, row by row; a sum over rows averages it out.
    """
    return _look(profile, grid, cut, profile.cuts[cut].astype(np.float64), twice=False)


def _look(
    profile: Profile, grid: Grid, cut: Cut, table: Floats, twice: bool = True, length: int | None = None
) -> Floats:
    """Return the sums of the table's entries along every rule, per response token.

    Where a bin holds several blocks, the whole row counts at the shortest window of its blocks, rounded down to whole
    bins. A row of the table has no window within its own bin. With `twice`, a block that keeps such a window counts as
    another whole row at the narrowest one there is: an upper bound, if entries are not negative.
    """
    per_bin, bins = bin_size(cut[1]) // BLOCK, table.shape[3]
    length = length or cut[1]
    first = grid.first(length)
    blocks, total_bins = first.shape[1], -(-first.shape[1] // per_bin)
    # With bins of several blocks the sink may end inside one: full rows are edge 0 whatever the bins are.
    edges = np.where(first > grid.reach.sink[:, None] // BLOCK, -(-first // per_bin), 0)
    within = edges > np.arange(blocks) // per_bin
    rows = 1 + twice * np.add.reduceat(within, np.arange(0, blocks, per_bin), axis=1, dtype=np.int64)
    shortest = edges[:, np.minimum(per_bin * np.arange(1, total_bins + 1), blocks) - 1]  # edges never fall
    which = np.array([profile.variants.index(rule.variant) for rule in grid.rules])
    by_row = np.moveaxis(table, 3, 0).reshape(bins, len(profile.variants), -1, table.shape[4])
    last = np.arange(3 * bins // 4, bins, max(1, bins // 32))  # eight rows stand for all of the last quarter
    total = np.zeros((len(grid), by_row.shape[2]))
    for row in range(total_bins):
        edge = np.minimum(shortest[:, row], row)
        if row < bins:
            lost = by_row[row, which, :, edge]
        else:
            each, same = np.unique(which * total_bins + edge, return_inverse=True)
            kind, edge = (x[:, None] for x in divmod(each, total_bins))
            alike = np.maximum(np.rint(edge * last / row).astype(np.int64), edge > 0)  # same share
            lost = by_row[last, kind, :, alike].mean(1)[same]
        total += lost * rows[:, row, None]
    tokens = profile.tokens[cut] * length / cut[1]
    return total.T / (tokens * (2 if profile.estimator(cut[0]) == "fisher" else 1))


def monotone(table: npt.NDArray[np.float32]) -> Floats:
    """Return the table as a running maximum over edges, row by row: no window helps, and no longer one harms more."""
    return np.maximum.accumulate(np.maximum(table.astype(np.float64), 0), axis=-1)
