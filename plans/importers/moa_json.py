"""Import the rules that MoA's authors publish; callers use `Plan.import_from("moa", …)`.

Their file (github.com/thu-nics/MoA) holds alpha and beta per layer and query head. Their runtime keeps
max(alpha + beta*N, 128) tokens for every query of a text, the first 64 included. N is the length of the prompt and
an allowance for new tokens. Here alpha and beta mean the same span, which includes a sink of 64, but n, the length
at each query, takes the place of N. So both agree at n = N, and ours is narrower before it where beta > 0.
"""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moa.plans.errors import PlanError, Unsupported
from moa.plans.importers.tables import json_file
from moa.plans.model import ModelInfo
from moa.plans.patterns import LIMIT, Rule
from moa.plans.span import BETA_STEPS


def read(source: str | PathLike[str] | Mapping[str, Any], info: ModelInfo) -> dict[int, Sequence[Rule]]:
    """Return the rules of each layer; the source is the file or its content, `{"alphas": [layers][heads], "betas": …}`.

    Raises:
        PlanError: It has another format, or another model's shape.
        Unsupported: Query heads share KV heads: the format has one rule per query head.
    """
    if info.group_size != 1:
        raise Unsupported(
            f"MoA's JSON has a rule per query head, but {info.architecture} shares each KV head between "
            f"{info.group_size} query heads, and their keys can follow one rule only"
        )
    if info.others:
        raise Unsupported(f"MoA's JSON has rules for every layer, but some of {info.architecture} take none")
    document = source if isinstance(source, Mapping) else json_file(Path(source))
    alphas = _table(document, "alphas", info, -LIMIT, LIMIT)
    betas = _table(document, "betas", info, 0, 1)
    return {
        layer: [Rule(alpha=_nearest(a), beta=_nearest(b * BETA_STEPS) / BETA_STEPS) for a, b in zip(*pair, strict=True)]
        for layer, pair in enumerate(zip(alphas, betas, strict=True))
    }


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _table(document: Any, key: str, info: ModelInfo, low: float, high: float) -> npt.NDArray[np.float64]:
    try:
        table = np.array(document[key], np.float64)
    except (KeyError, TypeError, ValueError):
        raise PlanError(f"MoA's JSON needs {key}, a table of numbers [layers][heads]") from None
    if table.shape != (info.layers, info.query_heads):
        raise PlanError(f"{key} must be [{info.layers}][{info.query_heads}], found shape {list(table.shape)}")
    if not ((low <= table) & (table <= high)).all():
        raise PlanError(f"{key} must be from {low} to {high}, found {table.min():g} to {table.max():g}")
    return table
