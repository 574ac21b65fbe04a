"""From a profile's cut tables to the harm of every rule in every group."""

import numpy as np
import numpy.typing as npt

from moa.plans.span import BLOCK, Floats
from moa.profiler.profile import Cut, Profile, bin_size
from moa.search.grid import Grid


def harm(profile: Profile, grid: Grid) -> dict[Cut, Floats]:
    """Harm of every rule in every group, per source and length: [groups, rules], groups layer by layer.

    harm(rule) = sum over rows of cut[row, edge of the rule at that row] / T, in the loss's unit per response token; of
    the estimator `fisher`, a quadratic form, half of it. Where a bin holds several blocks, each takes its share of the
    bin's row, at its own edge rounded up, that is to the shorter window.
    """
    return {cut: _harm(profile, cut, grid) for cut in profile.cuts}


def _harm(profile: Profile, cut: Cut, grid: Grid) -> Floats:
    table = monotone(profile.cuts[cut])
    per_bin = bin_size(cut[1]) // BLOCK
    first = grid.first(cut[1])
    rows = np.arange(first.shape[1]) // per_bin
    share = 1 / np.bincount(rows)[rows]
    # With bins of several blocks the sink may end inside one: full rows are edge 0 whatever the bins are.
    edges = np.where(first > grid.sink[:, None] // BLOCK, -(-first // per_bin), 0)
    which = np.array([profile.sinks.index(int(sink)) for sink in grid.sink])
    by_row = np.moveaxis(table, 3, 0).reshape(table.shape[3], len(profile.sinks), -1, table.shape[4])
    total = np.zeros((by_row.shape[2], len(grid)))
    for block, row in enumerate(rows):
        total += by_row[row, which, :, np.minimum(edges[:, block], row)].T * share[block]
    return total / (profile.tokens[cut] * (2 if profile.estimator(cut[0]) == "fisher" else 1))


def monotone(table: npt.NDArray[np.float32]) -> Floats:
    """The table with a longer window never hurting more, and none helping: a running maximum over edges, row by row."""
    return np.maximum.accumulate(np.maximum(table.astype(np.float64), 0), axis=-1)
