"""One thing that a case does to a plain command line or to a file of the workplace."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Effect = Literal["same", "bad", "free"]


@dataclass(frozen=True)
class Change:
    """A change, drawn once, so that a case does the same however often it runs.

    Attributes:
        what: In words, for the report.
        effect: `same` must not change the answer, `bad` must be refused; of `free` only the rule is asked.
        line: New arguments from the old.
        edit: Changes files below the workplace.
        encoding: Of the terminal; `broken` is one whose reader went away.
    """

    what: str
    effect: Effect
    line: Callable[[list[str]], list[str]] = list
    edit: Callable[[Path], object] = lambda _folder: None
    encoding: str = "utf-8"
