"""Convert budgets from the form that the user writes to the form that the solver takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import numpy.typing as npt

from moa.plans.errors import MoaError, brief
from moa.plans.model import Dtype, ModelInfo
from moa.plans.plan import Plan
from moa.plans.reading import READ_STEPS, SUMMARIES, read_bytes, summary_bytes, token_bytes
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
        kind: Its kind, one of `FORMS`; `harm` is the search's own objective.
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
    if kind not in FORMS:
        raise MoaError(f"a budget is one of {', '.join(FORMS)}, found {brief(kind)}")
    form = FORMS[kind]
    figure, at, where = text.partition("@")
    length, times, batch = where.partition("x")
    try:
        if (times and not form.batched) or (at and form.limit is None):
            raise ValueError("that does not depend on the batch, or on the length")
        budget = Budget(kind, float(figure), int(length) if at else None, int(batch) if times else 1)
    except ValueError:
        raise MoaError(f"a {kind} budget is written {form.written}, found {brief(text)}") from None
    if not 0 < budget.most < inf or budget.most > form.largest:
        most = "" if form.largest == inf else f" and at most {form.largest:g}"
        raise MoaError(f"a {kind} budget must be over 0{most}, found {brief(text)}")
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
        if kind in COSTS and where:
            return parse(kind, f"1@{where}")
    except MoaError:
        pass  # said below in the words of this form
    raise MoaError(f"a cost is written KIND@LENGTH[xBATCH], KIND one of {', '.join(COSTS)}; found {brief(text)}")


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
    made = FORMS[budget.kind].limit
    assert made is not None
    return made(budget, grid, model, costs)


def taken(plan: Plan, budget: Budget, costs: Costs | None = None) -> float:
    """Return what a plan takes of what a budget limits, whose length is known.

    Raises:
        MoaError: The budget is in milliseconds and there are no costs, or they do not know the plan's rules.
    """
    of_plan = FORMS[budget.kind].taken
    assert of_plan is not None
    return of_plan(plan, budget, costs)


def work(budget: Budget, length: int) -> Work:
    """Return the work whose time a budget in milliseconds limits."""
    kind = FORMS[budget.kind].times
    assert kind is not None
    return Work(kind, length, budget.batch)


def _density(budget: Budget, grid: Grid, model: ModelInfo, _costs: Costs | None) -> Limit:
    """Return a limit on the mean of span / length over the groups with rules."""
    length = _placed(budget)
    groups = len(model.ruled_layers) * model.kv_heads
    return Limit(str(budget), _every_group(grid.spans(length) / (length * groups), groups), budget.most)


def _read(budget: Budget, grid: Grid, model: ModelInfo, _costs: Costs | None) -> Limit:
    """Return a limit on the mean part of all bytes that a decode step reads, over the groups with rules."""
    length, size = _placed(budget), model.head_size
    groups = len(model.ruled_layers) * model.kv_heads
    read = read_bytes(grid.read256, length, grid.spans(length), grid.given, size)
    return Limit(str(budget), _every_group(read / (length * token_bytes(size) * groups), groups), budget.most)


def _kv_gb(budget: Budget, grid: Grid, model: ModelInfo, _costs: Costs | None) -> Limit:
    """Return a limit on the allocated cache in 10^9 bytes; sliding layers count as the model stores them.

    Where rules may read, every group counts summaries, though a layer in which none reads has none: a plan never takes
    more than is counted.
    """
    length = _placed(budget)
    groups = len(model.ruled_layers) * model.kv_heads
    dtype = budget.dtype or ASSUMED
    summaries = SUMMARIES * summary_bytes(model.head_size) if (grid.read256 < READ_STEPS).any() else 0
    block = (BLOCK * model.token_bytes(dtype) + summaries) * budget.batch / 1e9
    fixed = budget.batch * model.sliding_kv_bytes(np.array([length]), dtype) / 1e9
    return Limit(str(budget), _every_group(grid.cache_blocks(length) * block, groups), budget.most, fixed)


def _milliseconds(budget: Budget, grid: Grid, model: ModelInfo, costs: Costs | None) -> Limit:
    """Return a limit on the predicted time of a decode step or a prefill."""
    costs = _measured(budget, costs)
    costs.check(model)
    what, readers = work(budget, _placed(budget)), np.repeat(model.readers, model.kv_heads)
    return Limit(str(budget), np.outer(readers, costs.per_group(what, grid.rules)), budget.most, costs.fixed(what))


def _cache(plan: Plan, budget: Budget, _costs: Costs | None) -> float:
    """Return the plan's cache in 10^9 bytes."""
    return plan.kv_bytes(_placed(budget), budget.batch, budget.dtype or ASSUMED) / 1e9


def _predicted(plan: Plan, budget: Budget, costs: Costs | None) -> float:
    """Return the predicted time of a decode step or a prefill under the plan."""
    return _measured(budget, costs).predict(plan, work(budget, _placed(budget)))


def _measured(budget: Budget, costs: Costs | None) -> Costs:
    """Return the costs that a budget in milliseconds needs."""
    if costs is None:
        raise MoaError(f"{budget} needs measured costs: moa measure MODEL -o costs.json, then --costs costs.json")
    return costs


def _placed(budget: Budget) -> int:
    """Return the length at which a limit holds."""
    assert budget.length is not None
    return budget.length


def _every_group(cost: npt.ArrayLike, groups: int) -> Floats:
    """Return the same cost per rule in every group: [groups, rules]."""
    row = np.asarray(cost, np.float64)
    return np.broadcast_to(row, (groups, len(row)))


@dataclass(frozen=True)
class Form:
    """The form of one kind of budget.

    Attributes:
        written: How the user writes it.
        limit: Function from (budget with a length, candidate rules, model, costs) to the limit; None for harm, which
            the search itself sums up.
        taken: Function from (plan, budget with a length, costs) to what the plan takes; None for harm.
        largest: Its largest figure.
        batched: Whether it depends on the number of sequences.
        times: The kind of work whose time it limits; None for what needs no measured costs.
        kept: Whether it is of what rules keep alone.
    """

    written: str
    limit: Callable[[Budget, Grid, ModelInfo, Costs | None], Limit] | None
    taken: Callable[[Plan, Budget, Costs | None], float] | None
    largest: float = inf
    batched: bool = True
    times: Kind | None = None
    kept: bool = False


FORMS = {
    "density": Form(
        "D[@LENGTH]", _density, lambda plan, budget, _: plan.density(_placed(budget)),
        largest=1, batched=False, kept=True,
    ),
    "read": Form(
        "D[@LENGTH]", _read, lambda plan, budget, _: plan.read_density(_placed(budget)), largest=1, batched=False
    ),
    "kv_gb": Form("G@LENGTH[xBATCH]", _kv_gb, _cache, kept=True),
    "decode_ms": Form("T@LENGTH[xBATCH]", _milliseconds, _predicted, times="decode"),
    "prefill_ms": Form("T@LENGTH[xBATCH]", _milliseconds, _predicted, times="prefill", kept=True),
    "harm": Form("H", None, None, batched=False),
}  # fmt: skip
"""Every kind of budget."""
COSTS = tuple(kind for kind, form in FORMS.items() if form.limit)
"""Those that can be minimised."""
