"""Markdown of what `moa.comparison.compare` measured, as several pages show it."""

from collections.abc import Sequence
from typing import Any

from moa.cli.eval import COLUMNS, cells


def head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]


def compared(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table of all rows, with what each keeps of the dense model's needles."""
    lines = head([*COLUMNS, "kept of dense, one / four"])
    for row in rows:
        kept = [f"{row[t]['kept']:.2f}" if t in row and row[t]["kept"] is not None else "-" for t in ("single", "four")]
        lines.append("| " + " | ".join([*cells(row), " / ".join(kept)]) + " |")
    return lines
