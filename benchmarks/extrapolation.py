"""Compare extrapolated with measured harm of text, at lengths that are longer than the table's.

For every pair of profiled lengths of the source `text`, the harm of the search's rules at the longer one is
extrapolated from the shorter one's table (`moa.search.harm`) and compared with the longer one's own table. `unchanged`
is what the same rules cost at the shorter length. Writes extrapolation.json and extrapolation.md to `--results`.

    python benchmarks/extrapolation.py profile.safetensors
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from provenance import about, provenance, write
from scipy.stats import spearmanr

from moa.plans.errors import MoaError
from moa.plans.span import Floats
from moa.profiler.profile import Profile, describe
from moa.search.grid import grid
from moa.search.harm import harm
from moa.search.spread import iqr

COUNTED = 1e-3
"""Rules of less than this share of the narrowest rule's harm are left out: their ratios say nothing."""


def compare(true: Floats, found: Floats) -> dict[str, float]:
    """Return measures of how near `found` is to `true`, both [groups, rules].

    Returns:
        `rules`: rank correlation of the rules by their sums over groups; `groups`: that of groups, mean over rules;
        `ratio` and `iqr`: of found / true of those sums, the median, and the quartiles' distance over it.
    """
    sums, others = true.sum(0), found.sum(0)
    counted = np.flatnonzero(sums > COUNTED * sums.max())
    ratio = others[counted] / sums[counted]
    ranks = [spearmanr(true[:, i], found[:, i]).statistic for i in counted if found[:, i].any()]
    return {
        "rules": float(spearmanr(sums, others).statistic), "groups": float(np.mean(ranks)),
        "ratio": float(np.median(ratio)), "iqr": iqr(ratio.tolist()),
    }  # fmt: skip


def rows(profile: Profile) -> list[dict[str, Any]]:
    """Return one entry per pair of lengths."""
    lengths = sorted(n for source, n in profile.cuts if source == "text")
    if len(lengths) < 2:
        raise MoaError(f"the profile must have text at two lengths or more, found {len(lengths)}")
    found = []
    for short, long in combinations(lengths, 2):
        rules = grid((lengths[0], long), profile.variants)
        true = harm(profile, rules, ("text", long))
        extrapolated = compare(true, harm(profile, rules, ("text", short), long))
        unchanged = compare(true, harm(profile, rules, ("text", short)))
        found.append({"from": short, "to": long, "extrapolated": extrapolated, "unchanged": unchanged})
    return found


def markdown(found: dict[str, Any]) -> str:
    """Return the table."""
    lines = [
        f"{about(found['run'])}; samples {found['profile']['samples']}", "",
        "| from | to | | rank of rules | rank of groups | found / measured | IQR |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        for how in ("extrapolated", "unchanged"):
            cells = [f"{row[how][name]:.3f}" for name in ("rules", "groups", "ratio", "iqr")]
            lines.append(f"| {row['from']:,} | {row['to']:,} | {how} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        profile = Profile.load(options.profile)
        found = {"run": provenance(runs=1), "profile": describe(options.profile, profile), "rows": rows(profile)}
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    write(options.results, "extrapolation", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
