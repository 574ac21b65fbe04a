"""Finished results in a JSON-lines file, so that a killed run goes on where it stopped."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError
from moa.plans.replace import replace

_START = b'{"key": '
"""How each line begins; a cut-short line that begins otherwise is not ours to drop."""


class Journal:
    """Results by what they are results of. Without a path they live in memory only."""

    def __init__(self, path: Path | None) -> None:
        """Read what an earlier run finished; a last line that was cut short is dropped.

        Raises:
            MoaError: The file is something else.
        """
        self.path = path
        self._results: dict[str, Any] = {}
        if path is None or not path.exists():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        cut, lines = raw[len(whole) :], whole.splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                self._results[entry["key"]] = entry["result"]
            except (ValueError, KeyError, TypeError):
                raise _not_ours(path, number) from None
        if not cut.startswith(_START[: len(cut)]):
            raise _not_ours(path, len(lines) + 1)
        if cut:
            os.truncate(path, len(whole))

    def get(self, key: str) -> Any:
        """The result under `key`, or None."""
        return self._results.get(key)

    def put(self, key: str, result: Any, **about: Any) -> None:
        """Keep a result, on disk before this returns; `about` is for people who read the file."""
        self._results[key] = result
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"key": key, **about, "result": result}) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _not_ours(path: Path, line: int) -> MoaError:
    return MoaError(f"{path}, line {line}: not a result of an evaluation; move the file away")


def key(**what: Any) -> str:
    """A key from everything that a result depends on, as JSON."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def replace_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    replace(path, (json.dumps(content, indent=1) + "\n").encode())
