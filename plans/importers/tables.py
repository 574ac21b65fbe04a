"""Read tables of numbers, one per layer and head, from files of other tools or from memory."""

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moa.plans.errors import PlanError, Unsupported
from moa.plans.model import ModelInfo
from moa.plans.replace import read, read_json
from moa.plans.span import Floats

Source = str | PathLike[str] | npt.ArrayLike
"""A file, or the numbers themselves."""


def json_file(path: Path) -> Any:
    """Return the document in a JSON file.

    Raises:
        PlanError: It cannot be read.
    """
    try:
        return read_json(path)
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"{path}: not JSON: {error}") from None


def scores(source: Source, info: ModelInfo) -> Floats:
    """Return a score per layer and KV head [layers, kv_heads].

    Args:
        source: A file with a line per layer and a column per KV head (.tsv), or with nested lists (.json); or an array,
            tensor or nested list. Axes of size 1 do not count.
        info: The model.

    Raises:
        PlanError: The file cannot be read, or the numbers are not finite or of another shape.
        Unsupported: Some layers take no rules.
    """
    if info.others:
        raise Unsupported(f"scores are for every layer, but some of {info.architecture} take no rules")
    given: Any = source
    if isinstance(source, str | PathLike):
        path = Path(source)
        given = json_file(path) if path.suffix == ".json" else _lines(path)
    if hasattr(given, "detach"):  # a tensor; numpy knows neither gradients, bfloat16 nor other devices
        given = given.detach().cpu().double()
    try:
        table = np.asarray(given, np.float64).squeeze()
    except (TypeError, ValueError):
        raise PlanError("scores must be a table of numbers [layers][KV heads]") from None
    table = table.reshape(-1, 1) if info.kv_heads == 1 else table.reshape(1, -1) if info.layers == 1 else table
    if table.shape != (info.layers, info.kv_heads):
        raise PlanError(f"scores must be [{info.layers}][{info.kv_heads}], found shape {list(table.shape)}")
    if not np.isfinite(table).all():
        raise PlanError("scores must be finite numbers")
    return table


def _lines(path: Path) -> list[list[str]]:
    try:
        return [line.split() for line in read(path).decode().splitlines() if line.strip()]
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise PlanError(f"{path}: not UTF-8 text; scores are a .tsv or .json file, or numbers in memory") from None
