"""Store measured tables as safetensors files with a digest, so that a changed byte is refused and not used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from moa.plans.errors import ProfileError, shortened

Tables = dict[str, npt.NDArray[Any]]
_TEXT, _DIGEST = "profile", "digest"


def seal(tables: Tables, header: Mapping[str, Any]) -> bytes:
    """Return the content of a file with these tables, this header of JSON types, and a digest of both."""
    sealed = {**header, _DIGEST: _digest(tables, header)}
    return save(tables, {_TEXT: json.dumps(sealed, sort_keys=True)})  # one text: safetensors orders several at random


def unseal(path: str | Path, *, sealed: bool = True) -> tuple[Tables, dict[str, Any]]:
    """Return the tables and the header of a file.

    Args:
        path: The file.
        sealed: Whether the file must have a digest; profiles of older versions have none.

    Raises:
        ProfileError: The file cannot be read, is another kind of file, or was changed since it was written.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = _header((file.metadata() or {}).get(_TEXT), path)
            tables = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # a file is no mapping
    except (SafetensorError, OSError, TypeError, AttributeError) as error:  # the last two: a dtype that numpy lacks
        raise ProfileError(
            f"{path} is damaged or truncated: {type(error).__name__}: {shortened(str(error), 200)}"
        ) from error
    digest = header.pop(_DIGEST, None)
    if (sealed or digest is not None) and digest != _digest(tables, header):
        raise ProfileError(f"{path} is damaged: it does not hold what was written")
    return tables, header


def _header(text: str | None, path: str | Path) -> dict[str, Any]:
    if text is None:
        raise ProfileError(f"{path} is not a profile: the file has no header of one")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: broken header: {shortened(str(error), 200)}") from None
    if not isinstance(header, dict):
        raise ProfileError(f"{path}: broken header: it is no JSON object")
    return header


def _digest(tables: Tables, header: Mapping[str, Any]) -> str:
    told = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tables):
        table = np.ascontiguousarray(tables[name])
        told.update(f"{name} {table.dtype} {table.shape}".encode())
        told.update(table.tobytes())
    return f"sha256:{told.hexdigest()}"
