"""Write files in one step, so that a kill or a power failure leaves the old or the new one; read files that end."""

import errno
import json
import os
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import IO, Any
from uuid import uuid4


def read(path: str | PathLike[str]) -> bytes:
    """Return the content of a file or a pipe.

    Raises:
        OSError: It cannot be read; or it is a device, which may never end, as /dev/zero.
    """
    if Path(path).is_char_device():
        raise OSError(errno.EINVAL, "it is a device, not a file", str(path))
    return Path(path).read_bytes()


def read_json(path: str | PathLike[str]) -> Any:
    """Return the document in a JSON file.

    Raises:
        OSError: As `read`.
        ValueError: It is not JSON, or is nested deeper than Python can follow.
    """
    try:
        return json.loads(read(path))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def replace(path: str | PathLike[str], content: bytes) -> None:
    """Write a whole file in one step: a temporary file beside it is synced to disk, then renamed. All writers use this.

    Raises:
        OSError: The path cannot be written; what was there stays.
    """
    target = Path(path)
    temporary = target.with_name(f".{uuid4().hex}.tmp")  # another for each thread and machine that shares the folder
    try:
        with temporary.open("wb") as file:
            file.write(content)
            to_disk(file)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    folder_to_disk(target.parent)


def replace_json(path: str | PathLike[str], content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    replace(path, (json.dumps(content, indent=1) + "\n").encode())


def to_disk(file: IO[bytes]) -> None:
    """Wait until what was written is on the disk: a rename may get there first."""
    file.flush()
    os.fsync(file.fileno())


def folder_to_disk(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems do this by themselves, and refuse it
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
