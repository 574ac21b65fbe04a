"""Ask the dense model about needles first: where it surely finds too few, plans have no aim and are not asked."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from provenance import said
from tables import head, line

from moa.evaluation.comparison import compare
from moa.evaluation.samples import Part
from moa.plans.plan import Plan

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


def answered(row: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """Return the needles that were asked of a row, and of which the dense model finds enough for a claim."""
    return [task for task in NEEDLES if task in row and dense[task]["rate"] >= ANSWERED]


def measured(
    model: Any, tokenizer: Any, plans: Sequence[tuple[str, Plan]], part: Part, **how: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the comparison of plans, without needles that the dense model surely loses, and its row in the pilot."""
    title = f"{part.length:,} tokens"
    (dense,) = compare(model, tokenizer, [], [pilot_of(part)], progress=said(f"{title}, pilot"), **how)["rows"]
    return compare(model, tokenizer, plans, [asked_after(part, dense)], progress=said(title), **how), dense


def piloted(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of what the dense model found in the pilots."""
    lines = head(["tokens", "needles", "found by dense in the pilot", "plans were asked"])
    for row in rows:
        for task in (task for task in NEEDLES if task in row):
            right, asked, high = row[task]["right"], row[task]["questions"], row[task]["interval"][1]
            lines.append(line(f"{row['length']:,}", task, f"{right} of {asked}", "yes" if high >= ANSWERED else "no"))
    return lines
