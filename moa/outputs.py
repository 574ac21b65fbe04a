"""Refuse outputs that cannot be written before work starts, and read the results of earlier commands."""

from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from moa.plans.errors import MoaError, cause
from moa.plans.replace import read_json


def writable(path: Path, kind: str, read: Callable[[Path], object]) -> None:
    """Refuse an output that cannot be written, before work starts; a file in its place must be an older one.

    Args:
        path: The output.
        kind: Kind of file, for the message.
        read: Reads a file of this kind, and raises a ValueError for any other.
    """
    if path.is_dir():
        raise MoaError(f"cannot write {path}: it is a folder")
    try:
        TemporaryFile(dir=path.parent).close()  # os.access knows permissions only
    except OSError as error:
        raise MoaError(f"cannot write {path}: {path.parent} is no writable folder ({error.strerror})") from None
    if path.exists():
        try:
            read(path)
        except (ValueError, OSError) as error:
            raise MoaError(
                f"{path} is not a {kind}, so it is not replaced; move it or name another ({error})"
            ) from None


def results(*names: str) -> Callable[[Path], None]:
    """Return a reader for `writable`, of JSON objects that have these names."""

    def read(path: Path) -> None:
        found = read_json(path)
        if not isinstance(found, dict) or not set(names) <= found.keys():
            raise MoaError(f"a JSON object with {', '.join(names)} was expected")

    return read


def read_result(path: Path, names: Iterable[str], made_by: str) -> dict[str, Any]:
    """Return a result that a command wrote.

    Args:
        path: The file.
        names: What it must hold.
        made_by: The command, for the message.

    Raises:
        MoaError: It cannot be read, or lacks one of the names.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        raise MoaError(
            f"{path.parent} has no {path.name}: run moa compress MODEL -o {path.parent} to its end"
        ) from None
    except (OSError, ValueError) as error:
        raise MoaError(f"cannot read {path}: {cause(error)}") from None
    if not isinstance(found, dict) or not set(names) <= found.keys():
        raise MoaError(f"{path} is no result of {made_by}: {', '.join(names)} were expected")
    return found
