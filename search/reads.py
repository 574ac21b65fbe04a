"""Let rules read less than they keep: in the grid, and in the harm of each rule.

A profile has the harm of reading a share of all bytes while everything is kept. It stands for every rule that reads
this share, whatever the rule keeps, and is added to the harm of what the rule does not keep: as much is read from fewer
keys, so next to no key is missed that would not be missed among all of them. A rule that reads all that it keeps at a
length loses nothing by it there.

Measured shares lie a factor of two apart, which is coarse: a group that should read half as much again reads as much as
the others. So rules may also read the geometric mean of two neighbours, which is taken to cost that of their harms, as
it does where harm is a power of the share (docs/experiments/reads-shares.md has what this gives).
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt

import numpy as np
import numpy.typing as npt

from moa.plans.errors import MoaError
from moa.plans.reading import INSIDE, choices, fetched
from moa.plans.span import Floats
from moa.profiler.profile import Cut, Profile
from moa.profiler.read_tables import ReadTables
from moa.search.budget import FORMS, Budget
from moa.search.cost import Costs
from moa.search.grid import Grid
from moa.search.lengths import Lengths


def tables_of(profile: Profile) -> ReadTables:
    """Return the profile's tables of reads, which every source has.

    Raises:
        MoaError: They were not measured, or not of every source.
    """
    there = () if profile.reads is None else {source for source, _ in profile.reads.tables}
    if missing := [source for source in profile.sources if source not in there]:
        raise MoaError(
            f"budgets of reads need a profile that has measured them, found none of {', '.join(missing)}: measure with "
            "moa profile --reads"
        )
    assert profile.reads is not None
    return profile.reads


def may_read(profile: Profile, limits: Iterable[Budget | None], costs: Costs | None) -> bool:
    """Return whether a search lets rules read less than they keep.

    It does where what is read is limited or minimised. So it does where the time of decode steps is, if profile and
    costs know what reads take: without them every rule reads all that it keeps.
    """
    kinds = {limit.kind for limit in limits if limit is not None}
    timed = any(FORMS[kind].times == "decode" for kind in kinds)
    return "read" in kinds or (timed and profile.reads is not None and costs is not None and costs.know_reads)


def with_reads(profile: Profile, rules: Grid, lengths: Lengths) -> Grid:
    """Return the rules, and each at every share (`finer`) of which it cannot read all that it keeps at some length."""
    shares, size, found = finer(tables_of(profile).shares), profile.model.head_size, list(rules.rules)
    for share in shares:
        each = Grid(rule.reading(share) for rule in rules.rules)
        less = ~np.all([reads_all(each, n, size) for n in lengths.all], axis=0)
        found += [rule for rule, reads in zip(each.rules, less, strict=True) if reads]
    return Grid(found)


def finer(shares: Sequence[int]) -> tuple[int, ...]:
    """Return shares, falling, with the whole number nearest to the geometric mean between every two."""
    return tuple(sorted({*shares, *_means(shares)}, reverse=True))


def _means(shares: Sequence[int]) -> list[int]:
    return [round(sqrt(more * less)) for more, less in pairwise(shares)]


def reads_all(rules: Grid, length: int, head_size: int) -> npt.NDArray[np.bool_]:
    """Return which rules read all that they keep at a length: [rules]."""
    kept = rules.spans(length)
    all_: npt.NDArray[np.bool_] = fetched(rules.read256, length, kept, rules.given, head_size) == INSIDE * choices(
        kept, rules.given
    )
    return all_


def read_harm(profile: Profile, rules: Grid, cut: Cut, length: int | None = None) -> Floats:
    """Return what reading costs every rule in every group, by one source: [groups, rules], in the unit of `harm`.

    A share must never cost more than a smaller one, so a running maximum goes through the shares. Between two of them
    stands the geometric mean of their harms, or the greater harm where the other is none.

    Args:
        profile: The profile.
        rules: The rules.
        cut: Source and length of the table.
        length: Tokens of the text, None for those of the table; it decides which rules read all that they keep.

    Raises:
        MoaError: A rule reads a share that is neither measured nor between two that are.
    """
    reads = tables_of(profile)
    table = np.maximum.accumulate(np.maximum(reads.tables[cut].astype(np.float64), 0), axis=1)
    per_row = table.reshape(*table.shape[:2], -1) / (
        reads.rows[cut] * (2 if profile.estimator(cut[0]) == "fisher" else 1)
    )
    found = np.zeros((per_row.shape[2], len(rules)))
    less = np.flatnonzero(~reads_all(rules, length or cut[1], profile.model.head_size))
    which = [profile.variants.index(rules.rules[i].variant) for i in less]
    measured = dict(zip(reads.shares, per_row.swapaxes(0, 1), strict=True))  # of each share [variants, groups]
    between = (np.where(a > 0, np.sqrt(a * b), b) for a, b in pairwise(measured.values()))
    harms = dict(zip(_means(reads.shares), between, strict=True)) | measured
    if unknown := {*map(int, rules.read256[less])} - {*harms}:
        offered = ", ".join(map(str, finer(reads.shares)))
        raise MoaError(f"rules must read one of {offered} in 256, found {min(unknown)}")
    for place, variant in zip(less, which, strict=True):
        found[:, place] = harms[int(rules.read256[place])][variant]
    return found


def nearest(reads: ReadTables, source: str, length: int) -> Cut:
    """Return the table of a source that stands for a length: that of the longest measured up to it, else the first."""
    there = sorted(n for other, n in reads.tables if other == source)
    return source, max((n for n in there if n <= length), default=there[0])
