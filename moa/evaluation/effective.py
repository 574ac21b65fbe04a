"""Find the effective context length: up to which length a row still finds nearly all that it is asked for."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

ENOUGH = 0.9
"""The least accuracy that counts, as in MoA (arXiv 2406.14909)."""


def effective_context(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Return, by task that has a rate and by row, the effective context length in tokens.

    It is the longest measured length such that the rate is at least `ENOUGH` there and at all shorter ones; 0 if it is
    not even so at the shortest.

    Args:
        rows: Rows of an evaluation, as in its file.
    """
    found: dict[str, dict[str, int]] = {}
    rates: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for task, score in row.items():
            if isinstance(score, Mapping) and "rate" in score:
                rates.setdefault((task, row["row"]), {})[row["length"]] = score["rate"]
    for (task, name), by_length in rates.items():
        enough = takewhile(lambda at: at[1] >= ENOUGH, sorted(by_length.items()))
        found.setdefault(task, {})[name] = max((length for length, _ in enough), default=0)
    return found
