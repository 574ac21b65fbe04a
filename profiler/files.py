"""Read texts and rows of the user's files by their exact paths: no part of a name is a pattern or a URL."""

import codecs
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError, brief, cause, shortened
from moa.plans.replace import read

COLUMNS = ("text", "prompt", "response")
"""What is kept of a row; its other columns may hold anything."""


@dataclass
class Rows:
    """The parts of every row that are read, and the names of all columns."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(self, row: Any) -> None:
        """Add one row.

        Raises:
            MoaError: The row has no columns.
        """
        if not isinstance(row, dict):
            raise MoaError(f"row {len(self.kept) + 1} must be an object with columns, found {brief(row)}")
        self.names.update(row)
        self.kept.append({name: row[name] for name in COLUMNS if name in row})


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark, each line ended by a line feed alone.

    Raises:
        MoaError: The file cannot be read, or is not UTF-8 text.
    """
    try:
        return _text_of(read(path))
    except OSError as error:
        raise MoaError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise MoaError(f"{path} {error}") from None


def read_rows(path: Path) -> Rows:
    """Return the rows of a file whose name ends in one of FORMATS.

    Raises:
        MoaError: The file cannot be read; the error names the line or row.
    """
    try:
        return FORMATS[path.suffix](path)
    except (OSError, ValueError) as error:
        raise MoaError(f"cannot read data {path}: {shortened(cause(error), 200)}") from None


def _text(path: Path) -> Rows:
    """Read a file that is one document."""
    return Rows([{"text": _text_of(path.read_bytes())}], {"text"})


def _lines(path: Path) -> Rows:
    """Read a file with one object a line."""
    with path.open("rb") as file:
        return _objects(file)


def _json(path: Path) -> Rows:
    """Read a file with a list of objects, or one object a line."""
    raw = path.read_bytes()
    text = _decoded(raw)
    if not text.lstrip().startswith("["):
        return _objects(raw.splitlines())
    rows = Rows()
    for row in _loaded(text):
        rows.add(row)
    return rows


def _objects(lines: Iterable[bytes]) -> Rows:
    """Return rows made of JSON objects; an empty line is no row."""
    rows = Rows()
    for number, line in enumerate(lines, start=1):
        try:
            text = _decoded(line)
            row = _loaded(text) if text.strip() else None
        except ValueError as error:
            raise ValueError(f"line {number} {error}") from None
        if text.strip():
            rows.add(row)
    return rows


def _loaded(text: str) -> Any:
    """Return the value of the JSON; a ValueError tells where it is broken, and does not quote it."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"must be JSON: {error.msg}: {line}character {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists in lists
        raise ValueError(f"must be JSON that Python reads: {error}") from None


def _text_of(raw: bytes) -> str:
    """Return the text in these bytes as `read_text` does; a ValueError says what is wrong with it."""
    text = _decoded(raw)
    if (at := text.find("\0")) >= 0:
        raise ValueError(f"must be UTF-8 text: a NUL stands at character {at + 1}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decoded(raw: bytes) -> str:
    """Return the decoded UTF-8 without a byte order mark; a ValueError says what is there instead."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("must be UTF-8 text: it begins with the byte order mark of UTF-16")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"must be UTF-8 text: {error.reason} at byte {error.start}") from None


def _parquet(path: Path) -> Rows:
    """Read a table, of which only COLUMNS are loaded."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with path.open("rb") as file:
            table = ParquetFile(file)
            names = table.schema_arrow.names
            return Rows(table.read(columns=[name for name in COLUMNS if name in names]).to_pylist(), set(names))
    except ArrowException as error:
        raise ValueError(str(error)) from None


FORMATS = {".jsonl": _lines, ".json": _json, ".txt": _text, ".parquet": _parquet}
"""How a file is read, by the ending of its name."""
