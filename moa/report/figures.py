"""Show rows of figures in a terminal of any width: neither figures nor words of headings are broken."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

NAME = 12
"""Least width of a column of names; a longer name continues on the next line if the terminal is narrow."""


@dataclass(frozen=True)
class Figures:
    """A table that rich prints. What is too wide for the terminal goes into further tables below, for the same rows.

    Attributes:
        headings: Heading of each column.
        rows: The cells of each row; a cell may have several lines.
        title: Line above the table.
        caption: Lines below it.
        names: Number of leading columns that say what a row is: each table has them, and they alone may be folded.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    caption: str = ""
    names: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the title, the tables and the caption."""
        if self.title:
            yield Text(self.title, style="table.title")
        headings, parts, gap = self._form(options.max_width)
        for i, part in enumerate(parts):
            yield from [Text()] * (i > 0)
            yield self._table(headings, part, gap)
        if self.caption:
            yield Text(self.caption, style="table.caption")
        yield Text()

    def _form(self, width: int) -> tuple[list[str], list[list[int]], int]:
        """Return headings, each table's columns of figures and the gap: the roomiest one table, else the tightest."""
        for name, stacked, gap in ((width, False, 2), (width, True, 2), (NAME, True, 2), (NAME, True, 1)):
            headings = self._stacked() if stacked else list(self.headings)
            needed = [max(_wide(each), *(_wide(row[i]) for row in self.rows), 0) for i, each in enumerate(headings)]
            needed[: self.names] = [min(columns, name) for columns in needed[: self.names]]
            if sum(needed) + gap * (len(needed) - 1) <= width:
                return headings, [list(range(self.names, len(needed)))], gap
        return headings, self._parts(needed, width, gap), gap

    def _stacked(self) -> list[str]:
        """Return the headings in lines that are no wider than the figures below, or than the heading's longest word."""
        found = []
        for i, heading in enumerate(self.headings):
            widest = max([*map(len, heading.split()), *(_wide(row[i]) for row in self.rows)], default=1)
            found.append("\n".join(wrap(heading, widest, break_long_words=False, break_on_hyphens=False)))
        return found

    def _parts(self, needed: Sequence[int], width: int, gap: int) -> list[list[int]]:
        """Return which columns of figures each table has."""
        room = left = width - sum(columns + gap for columns in needed[: self.names])
        parts: list[list[int]] = [[]]
        for i, columns in enumerate(needed[self.names :], self.names):
            if columns > left and parts[-1]:
                parts.append([])
                left = room
            parts[-1].append(i)
            left -= columns + gap
        return parts

    def _table(self, headings: Sequence[str], figures: Sequence[int], gap: int) -> Table:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
        chosen = [*range(self.names), *figures]
        for i in chosen:
            table.add_column(Text(headings[i]), no_wrap=i >= self.names, overflow="fold")
        first = [row[0] for row in self.rows]
        runs = len(list(groupby(first)))
        grouped = runs == len(set(first)) < len(first)
        ends = [grouped and a != b for a, b in pairwise([*first, None])]
        for row, end in zip(self.rows, ends, strict=True):
            table.add_row(*(Text(row[i]) for i in chosen), end_section=end)
        return table


def _wide(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)
