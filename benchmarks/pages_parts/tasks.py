"""Write the blocks about tasks that people know."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from pages_parts.common import Figures, listed, table, wrapped
from student import student

from moa.evaluation.tasks import TASKS

ALL = "all tasks"


def tasks(found: Figures) -> str:
    """Return each row's score by length and task, and the tasks that the dense model hardly solves."""
    lines = []
    for length, here in lengths(found):
        for task in (task for task in TASKS if task in here["dense"]):
            scores = [row[task] for row in here.values()]
            cells = ["{:.2f} ({:.2f} to {:.2f})".format(score["rate"], *score["interval"]) for score in scores]
            lines.append([f"{length:,}", TASKS[task].columns[0], str(scores[0]["samples"]), *cells])
        lines.append([f"{length:,}", ALL, *together(here)])
    parts = [said(found), table(["tokens", "task", "samples", *names(found)], lines)] if lines else []
    return "\n\n".join([*parts, *left(found)])


def short(found: Figures) -> str:
    """Return the rows of all tasks together."""
    lines = [[f"{length:,}", *together(here)] for length, here in lengths(found)]
    parts = [said(found), table(["tokens", "samples", *names(found)], lines)] if lines else []
    return "\n\n".join([*parts, *left(found)])


def names(found: Figures) -> list[str]:
    """Return the names of the rows."""
    return list(dict.fromkeys(row["row"] for row in found["rows"]))


def lengths(found: Figures) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each length and its rows, by name."""
    for length in dict.fromkeys(row["length"] for row in found["rows"]):
        yield length, {row["row"]: row for row in found["rows"] if row["length"] == length}


def together(here: dict[str, Any]) -> list[str]:
    """Return the number of samples of all tasks, and each row's mean with the difference from dense."""
    asked = [task for task in TASKS if task in here["dense"]]
    marks = {name: np.array([*chain.from_iterable(row[task]["by_sample"] for task in asked)], float)
             for name, row in here.items()}  # fmt: skip
    dense = marks["dense"]
    cells = [f"{own.mean():.2f}" + ("" if own is dense else difference(own - dense)) for own in marks.values()]
    return [str(len(dense)), *cells]


def difference(each: np.ndarray[Any, Any]) -> str:
    """Return the mean of paired differences with its interval."""
    return ", {:+.2f} ({:+.2f} to {:+.2f})".format(*student(each))


def said(found: Figures) -> str:
    """Return what the figures are."""
    return wrapped(
        f"A score is the mean over a task's samples; {ALL} is the mean over the samples of all tasks at a length, then "
        "its difference from dense on the same samples. In brackets are 95 % intervals."
    )


def left(found: Figures) -> Iterator[str]:
    """Yield the sentence about tasks that were not run, if there are any."""
    lost = []
    for row in found["pilots"]:
        ran = {task for each in found["rows"] if each["length"] == row["length"] for task in each}
        if those := [task for task in TASKS if task in row and task not in ran]:
            lost.append(f"{listed(those)} from {row['length']:,} tokens on")
    if lost:
        yield wrapped(f"Not run, since the dense model hardly solves it in a pilot: {'; '.join(lost)}.")
