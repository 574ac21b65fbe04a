"""Files that are whole or as they were, whenever the process is killed; and reading what has an end."""

import errno
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any


def read(path: str | PathLike[str]) -> bytes:
    """The content of a file or a pipe.

    Raises:
        OSError: It cannot be read; or it is a device, and those such as /dev/zero never end.
    """
    if Path(path).is_char_device():
        raise OSError(errno.EINVAL, "it is a device, not a file", str(path))
    return Path(path).read_bytes()


def read_json(path: str | PathLike[str]) -> Any:
    """The document in a JSON file.

    Raises:
        OSError: As `read`.
        ValueError: It is not JSON, or nested deeper than Python can follow.
    """
    try:
        return json.loads(read(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def replace(path: str | PathLike[str], content: bytes) -> None:
    """Write a file in one step: beside it first, then in its place.

    Raises:
        OSError: The path cannot be written; what was there is left.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
