"""Files that are whole or as they were, whenever the process is killed."""

import os
from os import PathLike
from pathlib import Path


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
