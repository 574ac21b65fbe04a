"""Make the tables in Markdown that several pages show: comparisons and claims."""

from collections.abc import Sequence
from typing import Any

from moa.evaluation.interval import paired
from moa.evaluation.summary import table

SIGNED = "{:+.2f} ({:+.2f} to {:+.2f})"
"""How a difference and its interval are shown."""


def head(columns: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [line(*columns), f"|{'---|' * len(columns)}"]


def line(*cells: str) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def compared(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of all rows of a comparison, with what each keeps of the dense model's needles."""
    headings, shown = table(rows)
    lines = head([*headings, "kept of dense, one / four"])
    for row, cells in zip(rows, shown, strict=True):
        kept = [f"{row[t]['kept']:.2f}" if t in row and row[t]["kept"] is not None else "-" for t in ("single", "four")]
        lines.append(line(*cells, " / ".join(kept)))
    return lines


def difference(first: dict[str, Any], second: dict[str, Any], task: str) -> tuple[float, float, float]:
    """Return the rate of right answers of one row minus another's on the same questions, with its 95 % interval."""
    return paired(*([answer == "1" for answer in row[task]["by_question"]] for row in (first, second)))


def claim(text: str, measured: float | None, bound: float, *, at_most: bool = False) -> dict[str, Any]:
    """Return what must hold, what was measured, and whether it holds; None, not measurable, does not."""
    holds = measured is not None and (measured <= bound if at_most else measured >= bound)
    return {"claim": text, "measured": measured, "bound": bound, "holds": holds}


def claimed(claims: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of claims; one that does not hold stands in it as such.

    Where a claim is of a difference, in `difference` with its 95 % interval, that is there too.
    """
    differ = any("difference" in each for each in claims)
    lines = head(["claim", "bound", "measured", *(["difference"] if differ else []), "holds"])
    for each in claims:
        measured = "-" if each["measured"] is None else f"{each['measured']:.3f}"
        cells = [each["claim"], f"{each['bound']:g}", measured]
        if differ:
            cells.append(SIGNED.format(*each["difference"]) if "difference" in each else "-")
        lines.append(line(*cells, "yes" if each["holds"] else "NO"))
    return lines
