"""Budgets as the user writes them, and as the solver takes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.span import BLOCK, Floats
from moa.search.grid import Grid
from moa.search.solver import Limit


@dataclass(frozen=True)
class Budget:
    """A figure that the plan must not exceed.

    Attributes:
        kind: `density` or `kv_gb`.
        most: The figure.
        length: The length it holds at; None means every profiled length.
        batch: Sequences (`kv_gb` only).
    """

    kind: str
    most: float
    length: int | None = None
    batch: int = 1

    def __str__(self) -> str:
        where = "" if self.length is None else f"@{self.length}"
        return f"{self.kind}<={self.most:g}{where}{'' if self.batch == 1 else f'x{self.batch}'}"


def parse(kind: str, text: str) -> Budget:
    """A budget from `0.5`, `0.5@4096` or, for memory, `1.5@4096x8`.

    Raises:
        MoaError: Another form, or a figure out of range.
    """
    figure, at, where = text.partition("@")
    length, times, batch = where.partition("x")
    try:
        budget = Budget(kind, float(figure), int(length) if at else None, int(batch) if times else 1)
    except ValueError:
        form = "D[@LENGTH]" if kind == "density" else "G@LENGTH[xBATCH]"
        raise MoaError(f"a {kind} budget is written {form}, found {text!r}") from None
    if not 0 < budget.most < inf or (kind == "density" and budget.most > 1):
        raise MoaError(f"a {kind} budget must be over 0{' and at most 1' if kind == 'density' else ''}, found {text!r}")
    if (budget.length is not None and budget.length < 1) or budget.batch < 1:
        raise MoaError(f"length and batch of a budget must be at least 1, found {text!r}")
    return budget


def limits(budget: Budget, grid: Grid, model: ModelInfo, lengths: Sequence[int]) -> list[Limit]:
    """What the solver must keep: the budget at its length, or at every profiled one."""
    cost = _COSTS[budget.kind]
    at = [budget.length] if budget.length is not None else list(lengths)
    return [cost(Budget(budget.kind, budget.most, n, budget.batch), grid, model, n) for n in at]


def _density(budget: Budget, grid: Grid, model: ModelInfo, length: int) -> Limit:
    """Mean over ruled groups of span / length."""
    groups = len(model.ruled_layers) * model.kv_heads
    return Limit(str(budget), _every_group(grid.spans(length) / (length * groups), groups), budget.most)


def _kv_gb(budget: Budget, grid: Grid, model: ModelInfo, length: int) -> Limit:
    """Allocated cache in 10^9 bytes, two bytes per element; sliding layers as the model stores them."""
    groups = len(model.ruled_layers) * model.kv_heads
    block = BLOCK * 2 * model.head_size * 2 * budget.batch / 1e9
    fixed = model.sliding_kv_bytes(np.full(budget.batch, length), "bfloat16") / 1e9
    return Limit(str(budget), _every_group(grid.cache_blocks(length) * block, groups), budget.most, fixed)


_COSTS: dict[str, Callable[[Budget, Grid, ModelInfo, int], Limit]] = {"density": _density, "kv_gb": _kv_gb}


def _every_group(cost: npt.ArrayLike, groups: int) -> Floats:
    """The same cost per rule in every group: [groups, rules]."""
    row = np.asarray(cost, np.float64)
    return np.broadcast_to(row, (groups, len(row)))
