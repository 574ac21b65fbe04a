"""Keep finished results in a JSON-lines file, so that a killed run goes on where it stopped."""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moa.plans.lines import Lines


class Journal:
    """Results by the key of what they depend on. Without a path they are in memory only. Processes may share a file."""

    def __init__(self, path: Path | None) -> None:
        """Read what earlier runs finished; a damaged rest is moved to a file of its own, which a warning names.

        Raises:
            MoaError: The file is no journal.
        """
        self.path = path
        self._results: dict[str, Any] = {}
        self._earlier: set[str] = set()
        if path is not None and path.exists():
            with _locked(path) as lines:
                entries = lines.read()
            self._results = {entry["key"]: entry["result"] for entry in entries}
            self._earlier = {_said({k: v for k, v in entry.items() if k not in ("key", "result")}) for entry in entries}

    def get(self, key: str) -> Any:
        """Return the result under `key`, or None."""
        return self._results.get(key)

    def has_other(self, key: str, **about: Any) -> bool:
        """Return whether an earlier run kept a result of the same `about`, but none under `key`."""
        return key not in self._results and _said(about) in self._earlier

    def put(self, key: str, result: Any, **about: Any) -> None:
        """Keep a result, on disk before this returns; `about` is for people who read the file."""
        self._results[key] = result
        if self.path is not None:
            with _locked(self.path) as lines:
                lines.append({"key": key, **about, "result": result})


@contextmanager
def _locked(path: Path) -> Iterator[Lines]:
    """Yield the file while no other process reads or writes it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Lines(path, "a finished result", b'{"key": ', _ours)


def _ours(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("key"), str) and "result" in entry


def _said(about: dict[str, Any]) -> str:
    return json.dumps(about, sort_keys=True)


def key(**what: Any) -> str:
    """Return a key made of everything that a result depends on, as JSON."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
