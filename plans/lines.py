"""Append to files of JSON lines that survive a kill or a power failure: the next run continues them."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError
from moa.plans.replace import folder_to_disk, replace, to_disk

CHECK = "check"
"""The key of an entry's check."""
TAIL = 65536
"""Bytes that hold nearly every last line."""


@dataclass(frozen=True)
class Lines:
    """A file of JSON lines. Whoever reads or writes it holds a lock on it.

    Attributes:
        path: The file.
        what: What it is, for the message that it is something else.
        start: How its first line begins.
        fits: Whether an entry is one of ours.
    """

    path: Path
    what: str
    start: bytes
    fits: Callable[[Any], bool]

    def read(self) -> list[Any]:
        """Return all entries; a damaged rest is moved to a file beside this one, which a warning names.

        A line is damaged if it does not end, is not JSON, or differs from its check (where it has one). All that
        follows it counts as damaged too: later entries may build on it.

        Raises:
            MoaError: The file is something else; it is left as it was.
        """
        raw = self.path.read_bytes() if self.path.exists() else b""
        entries: list[Any] = []
        end = 0
        for line in raw.splitlines(keepends=True):
            if (entry := _entry(line)) is None:
                break
            if not self.fits(entry):
                raise self._other(len(entries) + 1)
            entries.append(entry)
            end += len(line)
        rest = raw[end:]
        if not entries and rest.strip(b"\0") and not self.start.startswith(rest[: len(self.start)]):
            raise self._other(1)  # a failed disk leaves zeros, or part of a line
        if rest:
            self._set_aside(rest, end, len(entries))
        return entries

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry with a checksum; it is on disk before this returns.

        It never continues half a line that a killed process left.
        """
        self.mend()
        new = not self.path.exists()
        with self.path.open("ab") as file:
            file.write((json.dumps({**entry, CHECK: _check(entry)}) + "\n").encode())
            to_disk(file)
        if new:
            folder_to_disk(self.path.parent)

    def mend(self) -> None:
        """Move a damaged rest to a file of its own, if the last line is damaged."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            last = file.read().splitlines(keepends=True)[-1:]
        if last and _entry(last[0]) is None:
            self.read()

    def _set_aside(self, rest: bytes, end: int, good: int) -> None:
        names = (self.path.with_name(f"{self.path.name}.damaged-{i}") for i in range(1, 2**31))
        aside = next(name for name in names if not name.exists())
        replace(aside, rest)
        with self.path.open("r+b") as file:
            file.truncate(end)
            to_disk(file)
        logging.getLogger("moa").warning(
            f"{self.path}: damaged from line {good + 1} on, {len(rest)} bytes set aside in {aside}; going on from the "
            f"{good} lines before"
        )

    def _other(self, number: int) -> MoaError:
        return MoaError(f"{self.path}, line {number}: not {self.what}, so the file is left as it is; name another")


def _entry(line: bytes) -> Any:
    """Return the entry in a line; None for a damaged one."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    checked = isinstance(entry, dict) and CHECK in entry
    return None if checked and entry.pop(CHECK) != _check(entry) else entry


def _check(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:16]
