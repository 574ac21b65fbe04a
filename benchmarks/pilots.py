"""Ask the dense model about needles first: where it surely finds too few, plans have no aim and are not asked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tables import head, line

from moa.evaluation.samples import Part

ANSWERED = 0.9
"""Share of needles that the dense model must find; where it finds less, plans have no aim."""
NEEDLES = "single", "four"
PILOT = 10
"""Contexts of each kind that the dense model is asked about first."""


def pilot_of(part: Part) -> Part:
    """Return what the dense model is asked first of what is asked at a length: some of the needles, no text."""
    return replace(part, counts={task: min(part.counts[task], PILOT) for task in NEEDLES})


def asked_after(part: Part, dense: dict[str, Any]) -> Part:
    """Return the part without the needles that the dense model surely finds less than `ANSWERED` of, by its pilot."""
    lost = [task for task in NEEDLES if task in dense and dense[task]["interval"][1] < ANSWERED]
    return replace(part, counts={**part.counts, **dict.fromkeys(lost, 0)})


def piloted(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of what the dense model found in the pilots."""
    lines = head(["tokens", "needles", "found by dense in the pilot", "plans were asked"])
    for row in rows:
        for task in (task for task in NEEDLES if task in row):
            right, asked, high = row[task]["right"], row[task]["questions"], row[task]["interval"][1]
            lines.append(line(f"{row['length']:,}", task, f"{right} of {asked}", "yes" if high >= ANSWERED else "no"))
    return lines
