"""The exact core: one rule per group, least objective, every budget kept.

A multiple-choice knapsack with several constraints, solved by HiGHS. Rules that another rule of the same group beats in
the objective and in every cost are dropped first. The bound is HiGHS's own; it comes with the solution.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from moa.plans.errors import BudgetInfeasible
from moa.plans.span import Floats, Ints

SLACK = 1e-9
"""A budget counts as kept up to this fraction: room for rounding in sums, far less than one block."""

UNITS = 1e4
"""What budgets and objective are scaled to: HiGHS's tolerances are absolute, 1e-6."""


@dataclass(frozen=True)
class Limit:
    """One budget: the sum of `cost` over the chosen rules, `fixed` added, is at most `most`.

    Attributes:
        name: For messages, as the user wrote it.
        cost: What a rule costs in a group, not negative: [groups, rules].
        most: The budget.
        fixed: The part that no choice changes.
    """

    name: str
    cost: Floats
    most: float
    fixed: float = 0.0


@dataclass(frozen=True)
class Solution:
    """A choice and how good it is known to be.

    Attributes:
        choice: Rule of each group: int64 [groups].
        value: Its objective.
        bound: No choice within the budgets is below this.
        columns: (group, rule) pairs given, and left after dominated ones were dropped.
        seconds: Time taken.
        timed_out: The time limit came before the gap was reached; the best choice found is returned.
    """

    choice: Ints
    value: float
    bound: float
    columns: tuple[int, int]
    seconds: float
    timed_out: bool

    @property
    def gap(self) -> float:
        """Part of the objective by which a better choice might undercut this one."""
        return max(0.0, self.value - self.bound) / self.value if self.value > 0 else 0.0


def solve(objective: Floats, limits: Sequence[Limit], *, gap: float = 1e-4, time_limit: float = 60.0) -> Solution:
    """Choose one rule per group.

    Args:
        objective: What to minimise the sum of, not negative: [groups, rules].
        limits: Budgets, all to be kept.
        gap: Stop when the choice is proven within this fraction of the optimum.
        time_limit: Seconds; then the best choice found is returned.

    Raises:
        BudgetInfeasible: No choice keeps all budgets; names the smallest feasible value.
    """
    start = time.monotonic()
    for limit in limits:
        least = float(limit.cost.min(1).sum()) + limit.fixed
        if least > limit.most * (1 + SLACK):
            raise BudgetInfeasible(f"no plan keeps {limit.name}: the smallest feasible value is {_round_up(least)}")
    rooms = [limit.most * (1 + SLACK) - limit.fixed for limit in limits]
    fits = _undominated(objective, [limit.cost for limit in limits])
    for limit, room in zip(limits, rooms, strict=True):
        fits &= limit.cost <= room  # costs are not negative: a rule over the whole budget is in no choice
    names = " and ".join(limit.name for limit in limits)
    together = f"no plan keeps {names} together, though each alone can be kept"
    if not fits.any(1).all():
        raise BudgetInfeasible(together)
    group, rule = np.nonzero(fits)
    groups, columns = len(objective), np.arange(len(group))
    one_each = csr_array((np.ones(len(group)), (group, columns)), shape=(groups, len(group)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for limit, room in zip(limits, rooms, strict=True):
        scale = (room if room > 0 else 1.0) / UNITS
        row = csr_array((limit.cost[group, rule] / scale, (np.zeros_like(group), columns)), shape=(1, len(group)))
        constraints.append(LinearConstraint(row, -np.inf, UNITS))
    weight = objective[group, rule]
    unit = max(float(weight.max()), 1e-300) / UNITS
    result = milp(
        weight / unit, constraints=constraints, integrality=np.ones(len(group)), bounds=Bounds(0, 1),
        options={"mip_rel_gap": gap, "time_limit": time_limit},
    )  # fmt: skip
    if result.x is None:
        if result.status == 2:
            raise BudgetInfeasible(together)
        raise BudgetInfeasible(f"no plan within {names} was found in {time_limit:g} s; allow more time")
    chosen = np.flatnonzero(result.x > 0.5)
    assert len(chosen) == groups
    choice = np.empty(groups, np.int64)
    choice[group[chosen]] = rule[chosen]
    value = float(objective[np.arange(groups), choice].sum())
    bound = min(float(result.mip_dual_bound) * unit, value)
    elapsed = time.monotonic() - start
    return Solution(choice, value, bound, (objective.size, len(group)), elapsed, result.status == 1)


def _undominated(objective: Floats, costs: Sequence[Floats]) -> npt.NDArray[np.bool_]:
    """Rules that no other rule of the group matches or beats in everything; of equals the first stays."""
    kept = np.ones(objective.shape, bool)
    measures = np.stack([objective, *costs], -1)  # [groups, rules, measures]
    for g, rules in enumerate(measures):
        order = np.lexsort(rules.T[::-1])
        for position, r in enumerate(order):
            before = order[:position][kept[g, order[:position]]]
            kept[g, r] = not (rules[before] <= rules[r]).all(1).any()
    return kept


def _round_up(value: float) -> str:
    """Four digits, never below `value`, so that the figure printed is itself feasible."""
    step = 10.0 ** (np.floor(np.log10(value)) - 3) if value > 0 else 1.0
    return f"{np.ceil(value / step) * step:.6g}"
