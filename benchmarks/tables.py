"""Make the tables in Markdown that several pages show: comparisons and claims."""

from collections.abc import Sequence
from typing import Any

from moa.evaluation.summary import table


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


def claim(text: str, measured: float | None, bound: float, *, at_most: bool = False) -> dict[str, Any]:
    """Return what must hold, what was measured, and whether it holds; None, not measurable, does not."""
    holds = measured is not None and (measured <= bound if at_most else measured >= bound)
    return {"claim": text, "measured": measured, "bound": bound, "holds": holds}


def claimed(claims: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of claims; one that does not hold stands in it as such."""
    lines = head(["claim", "bound", "measured", "holds"])
    for each in claims:
        measured = "-" if each["measured"] is None else f"{each['measured']:.3f}"
        lines.append(line(each["claim"], f"{each['bound']:g}", measured, "yes" if each["holds"] else "NO"))
    return lines
