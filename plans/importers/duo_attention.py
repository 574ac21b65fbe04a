"""Import the patterns that DuoAttention trains (arXiv 2410.10819, github.com/mit-han-lab/duo-attention).

Its `full_attention_heads.tsv` has a number from 0 to 1 per layer and KV head; beside it, `config.json` says the sink
and the recent tokens that the other heads were trained with. A head has full attention where its number is at least the
threshold. A sparsity asks for the part of heads without it; the threshold is then that quantile of the numbers.
"""

import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from moa.plans.errors import PlanError
from moa.plans.importers import tables
from moa.plans.makers import two_group
from moa.plans.model import ModelInfo, whole
from moa.plans.patterns import Rule
from moa.plans.span import Floats, Ints

THRESHOLD = 0.5
"""Their default."""


def read(
    source: tables.Source, info: ModelInfo, *, threshold: float | None = None, sparsity: float | None = None,
    sink: int | None = None, recent: int | None = None,
) -> dict[int, Sequence[Rule]]:  # fmt: skip
    """Return the rules of each layer.

    Args:
        source: `full_attention_heads.tsv`, or the numbers.
        info: The model.
        threshold: The least number of a head with full attention, by default 0.5.
        sparsity: In place of a threshold: the part of heads that have none, 0 to 1.
        sink: First tokens that the other heads see; None for what the file's `config.json` says.
        recent: Last tokens that they see; None likewise.

    Raises:
        PlanError: Numbers or options are invalid, or nothing says the tokens that the other heads see.
    """
    if threshold is not None and sparsity is not None:
        raise PlanError("give a threshold or a sparsity, not both")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise PlanError(f"sparsity must be from 0 to 1, found {sparsity:g}")
    if threshold is not None and not 0 <= threshold <= 1:
        raise PlanError(f"threshold must be from 0 to 1, found {threshold:g}")
    table = tables.scores(source, info).clip(0, 1)
    if sparsity is None:
        full = np.argwhere(table >= (THRESHOLD if threshold is None else threshold))
    else:
        full = _best(table, sparsity)
    if sink is None or recent is None:
        said = _config(source)
        sink, recent = (said[0] if sink is None else sink), (said[1] if recent is None else recent)
    sink, recent = whole("sink", sink), whole("recent", recent)
    return dict(two_group(info, [(int(layer), int(head)) for layer, head in full], recent, sink)[0])


def _best(table: Floats, sparsity: float) -> Ints:
    """Return the places of the numbers at or over a quantile; of equal ones at it, the first lose."""
    narrow = table.size if sparsity == 1 else math.ceil(sparsity * (table.size - 1) - 1e-9)
    order = np.argsort(table.ravel(), kind="stable")[narrow:]
    return np.stack(np.unravel_index(np.sort(order), table.shape), 1)


def _config(source: tables.Source) -> tuple[int, int]:
    """Return the sink and the recent tokens that the file beside the table says."""
    if not isinstance(source, str | PathLike):
        raise PlanError("numbers in memory do not say what the other heads see: give sink and recent, in tokens")
    path = Path(source).with_name("config.json")
    found = tables.json_file(path)
    sizes = [found.get(name) for name in ("sink_size", "recent_size")] if isinstance(found, dict) else []
    known = [size for size in sizes if isinstance(size, int) and size > 0]
    if len(known) != 2:
        raise PlanError(f"{path} must have sink_size and recent_size, numbers of tokens; or give sink and recent")
    return known[0], known[1]
