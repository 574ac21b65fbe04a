"""Convert budgets from the form that the user writes to the form that the solver takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import numpy.typing as npt

from moa.plans.errors import MoaError, brief
from moa.plans.model import Dtype, ModelInfo
from moa.plans.span import BLOCK, LONGEST, Floats
from moa.search.cost import Costs, Kind, Work
from moa.search.grid import Grid
from moa.search.solver import Limit

LARGEST = 2**20
"""Largest number of sequences that a budget may name."""

ASSUMED: Dtype = "bfloat16"
"""Dtype of the cache where neither the user nor the profile names one."""


@dataclass(frozen=True)
class Budget:
    """A figure that the plan must not exceed.

    Attributes:
        kind: `density`, `kv_gb`, `decode_ms`, `prefill_ms`, or `harm`, the search's own objective.
        most: The largest figure allowed.
        length: The length at which it holds; None for the longest that the plan is for.
        batch: Number of sequences; a density has none.
        dtype: Dtype of the cache, for a budget in bytes; None is `ASSUMED` here, and in a search the profiled model's.
    """

    kind: str
    most: float
    length: int | None = None
    batch: int = 1
    dtype: Dtype | None = None

    def at(self, length: int) -> "Budget":
        """Return the same budget at a length, unless it names one of its own."""
        return self if self.length is not None else replace(self, length=length)

    def __str__(self) -> str:
        where = "" if self.length is None else f"@{self.length}"
        return f"{self.kind}<={self.most:g}{where}{'' if self.batch == 1 else f'x{self.batch}'}{self.unit}"

    @property
    def named(self) -> str:
        """The name of the budget as a cost to minimise."""
        return f"{self.kind}@{self.length}{'' if self.batch == 1 else f'x{self.batch}'}"

    @property
    def unit(self) -> str:
        """The unit of the figure, for messages."""
        return "" if self.dtype is None else f" in {self.dtype}"

    def stored(self, dtype: Dtype) -> "Budget":
        """Return the budget, counted in `dtype` where it is in bytes and names no other."""
        return replace(self, dtype=dtype) if self.kind == "kv_gb" and self.dtype is None else self


def parse(kind: str, text: str) -> Budget:
    """Return the budget written as `0.5`, `0.5@4096` or, for memory and time, `1.5@4096x8`.

    Raises:
        MoaError: The text has another form, or a figure is out of range.
    """
    figure, at, where = text.partition("@")
    length, times, batch = where.partition("x")
    try:
        if (times and kind == "density") or (at and kind == "harm"):
            raise ValueError("that does not depend on the batch, or on the length")
        budget = Budget(kind, float(figure), int(length) if at else None, int(batch) if times else 1)
    except ValueError:
        form = "H" if kind == "harm" else _FORMS[kind]
        raise MoaError(f"a {kind} budget is written {form}, found {brief(text)}") from None
    if not 0 < budget.most < inf or (kind == "density" and budget.most > 1):
        raise MoaError(
            f"a {kind} budget must be over 0{' and at most 1' if kind == 'density' else ''}, found {brief(text)}"
        )
    if not (1 <= budget.batch <= LARGEST and (budget.length is None or 1 <= budget.length <= LONGEST)):
        raise MoaError(
            f"the length of a budget must be from 1 to {LONGEST}, its batch to {LARGEST}, found {brief(text)}"
        )
    return budget


def cost(text: str) -> Budget:
    """Return the cost to minimise written as `density@4096` or `decode_ms@4096x4`; the budget's figure does not count.

    Raises:
        MoaError: The text has another form.
    """
    kind, _, where = text.partition("@")
    try:
        if kind in _FORMS and where:
            return parse(kind, f"1@{where}")
    except MoaError:
        pass  # said below in the words of this form
    raise MoaError(f"a cost is written KIND@LENGTH[xBATCH], KIND one of {', '.join(_FORMS)}; found {brief(text)}")


def limit(budget: Budget, grid: Grid, model: ModelInfo, longest: int, costs: Costs | None = None) -> Limit:
    """Return the budget as a limit for the solver, at the budget's length or else the longest that the plan is for.

    Memory and time run out on the longest texts; shorter texts take few bytes, so a plan may keep more of them.

    Args:
        budget: The budget.
        grid: Candidate rules.
        model: The model that was profiled.
        longest: The longest intended length.
        costs: Measured costs, for budgets in milliseconds.

    Raises:
        MoaError: The budget is in milliseconds and there are no costs.
        ModelMismatch: The costs are of another model.
    """
    budget = budget.at(longest)
    assert budget.length is not None
    if budget.kind in _COSTS:
        return _COSTS[budget.kind](budget, grid, model, budget.length)
    if costs is None:
        raise MoaError(f"{budget} needs measured costs: moa measure MODEL -o costs.json, then --costs costs.json")
    costs.check(model)
    return _milliseconds(budget, grid, model, costs)


def work(budget: Budget, length: int) -> Work:
    """Return the work whose time a budget in milliseconds limits."""
    kind: Kind = "decode" if budget.kind == "decode_ms" else "prefill"
    return Work(kind, length, budget.batch)


def _density(budget: Budget, grid: Grid, model: ModelInfo, length: int) -> Limit:
    """Return a limit on the mean of span / length over the groups with rules."""
    groups = len(model.ruled_layers) * model.kv_heads
    return Limit(str(budget), _every_group(grid.spans(length) / (length * groups), groups), budget.most)


def _kv_gb(budget: Budget, grid: Grid, model: ModelInfo, length: int) -> Limit:
    """Return a limit on the allocated cache in 10^9 bytes; sliding layers count as the model stores them."""
    groups = len(model.ruled_layers) * model.kv_heads
    dtype = budget.dtype or ASSUMED
    block = BLOCK * model.token_bytes(dtype) * budget.batch / 1e9
    fixed = budget.batch * model.sliding_kv_bytes(np.array([length]), dtype) / 1e9
    return Limit(str(budget), _every_group(grid.cache_blocks(length) * block, groups), budget.most, fixed)


def _milliseconds(budget: Budget, grid: Grid, model: ModelInfo, costs: Costs) -> Limit:
    """Return a limit on the predicted time of a decode step or a prefill."""
    assert budget.length is not None
    groups, what = len(model.ruled_layers) * model.kv_heads, work(budget, budget.length)
    row = costs.per_group(what, grid.reach, grid.moves_keys)
    return Limit(str(budget), _every_group(row, groups), budget.most, costs.fixed(what))


_FORMS = {
    "density": "D[@LENGTH]", "kv_gb": "G@LENGTH[xBATCH]", "decode_ms": "T@LENGTH[xBATCH]",
    "prefill_ms": "T@LENGTH[xBATCH]",
}  # fmt: skip
_COSTS: dict[str, Callable[[Budget, Grid, ModelInfo, int], Limit]] = {"density": _density, "kv_gb": _kv_gb}


def _every_group(cost: npt.ArrayLike, groups: int) -> Floats:
    """Return the same cost per rule in every group: [groups, rules]."""
    row = np.asarray(cost, np.float64)
    return np.broadcast_to(row, (groups, len(row)))
