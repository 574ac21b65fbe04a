"""Solve for the choice of one rule per group that minimises the objective within every budget, exactly.

This is a multiple-choice knapsack with several constraints. A rule is dropped when another rule of the same group beats
it in the objective and in every cost. Lagrangian duality bounds the optimum from below, a repaired choice from above; a
rule whose reduced cost exceeds the distance between the two is in no better choice, and is dropped too. HiGHS solves
the integer program over the rest, first over its most promising part, which brings the bounds closer.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.span import Floats, Ints
from moa.search.bounds import Mask, dual, reduced, repair, undominated
from moa.search.quiet import quiet

SLACK = 1e-9
"""A plan may exceed a budget by this fraction, so that rounding in sums does not count; one block is far more."""

UNITS = 1e4
"""Budgets and objective are scaled to this in the integer program, since HiGHS's tolerance of 1e-6 is absolute."""

FIRST = 2000
"""(group, rule) pairs in the first integer program; each further one takes four times as many."""


@dataclass(frozen=True)
class Limit:
    """A budget: the sum of `cost` over the chosen rules, plus `fixed`, is at most `most`.

    Attributes:
        name: The budget as the user wrote it, for messages.
        cost: Cost of each rule in each group, not negative: [groups, rules].
        most: The budget.
        fixed: The part of the cost that no choice changes.
    """

    name: str
    cost: Floats
    most: float
    fixed: float = 0.0

    def among(self, rules: Ints | slice) -> "Limit":
        """Return the limit on a choice among some of the rules."""
        return replace(self, cost=self.cost[:, rules])


@dataclass(frozen=True)
class Solution:
    """A choice and how good it is known to be.

    Attributes:
        choice: Rule of each group: int64 [groups].
        value: Its objective.
        bound: Lower bound on the objective of all choices within the budgets.
        lagrangian: The bound that duality alone proves, apart from HiGHS.
        columns: Number of (group, rule) pairs given, and of those left after dominated ones were dropped.
        seconds: Time taken.
        timed_out: Whether the time limit came before the gap was reached; the choice is the best one found.
    """

    choice: Ints
    value: float
    bound: float
    lagrangian: float
    columns: tuple[int, int]
    seconds: float
    timed_out: bool

    @property
    def gap(self) -> float:
        """The part of the objective by which a better choice might undercut this one."""
        return max(0.0, self.value - self.bound) / self.value if self.value > 0 else 0.0

    def plus(self, fixed: float) -> "Solution":
        """Return the same solution of the problem whose objective has `fixed` added for every choice."""
        value, bound, lagrangian = (figure + fixed for figure in (self.value, self.bound, self.lagrangian))
        return replace(self, value=value, bound=bound, lagrangian=lagrangian)


def solve(objective: Floats, limits: Sequence[Limit], *, gap: float = 1e-4, time_limit: float = 60.0) -> Solution:
    """Return the best choice of one rule per group.

    Args:
        objective: Figures whose sum is minimised, not negative: [groups, rules].
        limits: Budgets, all of which the choice keeps.
        gap: The solver stops when the choice is proven within this fraction of the optimum.
        time_limit: Seconds after which the best choice found is returned.

    Raises:
        BudgetInfeasible: No choice keeps all budgets; the error names the smallest feasible values.
        MoaError: The time limit leaves no time at all.
    """
    if not time_limit > 0:
        raise MoaError(f"the time limit must be over 0 seconds, found {time_limit}")
    check(limits)
    solution, timed_out = _attempt(objective, limits, gap, time_limit)
    if solution is None:
        names = " and ".join(limit.name for limit in limits)
        if timed_out:
            raise BudgetInfeasible(f"no plan within {names} was found in {time_limit:g} s; allow more time")
        raise BudgetInfeasible(_conflict(limits, time_limit))
    return solution


def check(limits: Sequence[Limit]) -> None:
    """Raise BudgetInfeasible, with the smallest feasible value, for a budget that cannot be kept even alone."""
    for limit in limits:
        least = float(limit.cost.min(1).sum()) + limit.fixed
        if least > limit.most * (1 + SLACK):
            raise BudgetInfeasible(f"no plan keeps {limit.name}: the smallest feasible value is {_round_up(least)}")


def _attempt(objective: Floats, limits: Sequence[Limit], gap: float, time_limit: float) -> tuple[Solution | None, bool]:
    """Return the solution (None where none was found) and whether time ran out; each budget alone can be kept."""
    start = time.monotonic()
    unit = float(objective.max()) or 1.0
    goal, costs = objective / unit, _scaled(objective, limits)
    kept = undominated(goal, costs)
    prices, lagrangian = dual(goal, costs)
    distance = reduced(goal, costs, prices)
    distance = np.where(kept, distance - distance.min(1, keepdims=True), np.inf)
    priced = np.where(kept, goal, 2 * goal.max(1).sum() + 1)  # a dropped rule is worse than any choice
    best = repair(priced, costs, distance.argmin(1))
    if best is None:
        best = repair(priced, costs, np.where(kept, costs.sum(0), np.inf).argmin(1))
    value, bound = _value(goal, best), lagrangian
    pairs, whole, timed_out = FIRST, False, False
    while not whole and not timed_out and (best is None or value - bound > gap * value):
        core = kept & (distance <= (value - lagrangian) * (1 + SLACK))
        whole = int(core.sum()) <= pairs
        if not whole:
            core &= distance <= np.partition(distance[core], pairs)[pairs]
        left = time_limit - (time.monotonic() - start)
        share = left if whole else left / 4  # a part of the program only has to improve the choice
        found, proven, late = _integer(goal, costs, core, value, gap, max(share, 0.01))
        timed_out = late and whole
        if _value(goal, found) < value:
            best, value = found, _value(goal, found)
        if whole:  # rules outside the core are in no choice below `value`
            bound = max(bound, float(min(proven, value)))
        pairs *= 4
    if best is None:
        return None, timed_out
    value = _value(objective, best)
    bound, lagrangian = min(unit * bound, value), min(unit * lagrangian, value)
    columns, elapsed = (objective.size, int(kept.sum())), time.monotonic() - start
    return Solution(best, value, bound, lagrangian, columns, elapsed, timed_out), timed_out


def _scaled(objective: Floats, limits: Sequence[Limit]) -> Floats:
    """Return costs as parts of their budget: [budgets, groups, rules]."""
    costs = np.zeros((len(limits), *objective.shape))
    for cost, limit in zip(costs, limits, strict=True):
        room = limit.most * (1 + SLACK) - limit.fixed
        if room > 0:  # with none, and yet feasible, the only rules that fit cost nothing
            cost[:] = limit.cost / room
        else:
            cost[:] = np.where(limit.cost > 0, 2, 0)
    return costs


def _value(objective: Floats, choice: Ints | None) -> float:
    return np.inf if choice is None else float(objective[np.arange(len(objective)), choice].sum())


def _integer(
    objective: Floats, costs: Floats, core: Mask, value: float, gap: float, time_limit: float
) -> tuple[Ints | None, float, bool]:
    """Solve the integer program over the pairs in `core`, where a choice of `value` is known.

    Returns:
        A choice, the bound proven within the core, and whether time ran out.
    """
    group, rule = np.nonzero(core)
    columns = np.arange(len(group))
    least = np.where(core, objective, np.inf).min(1)  # what every choice pays would only blur the tolerances
    extra = objective[group, rule] - least[group]
    unit = max(float(extra.max()), 1e-300) / UNITS
    part = 1 - least.sum() / value if value > 0 else 1.0  # of the value that HiGHS sees, and takes its gap from
    one_each = csr_array((np.ones(len(group)), (group, columns)), shape=(len(core), len(group)))
    constraints = [LinearConstraint(one_each, 1, 1)]
    constraints += [LinearConstraint(cost[None, group, rule] * UNITS, -np.inf, UNITS) for cost in costs]
    with quiet():
        result = milp(
            extra / unit, constraints=constraints, integrality=np.ones(len(group)), bounds=Bounds(0, 1),
            options={"mip_rel_gap": min(gap / max(part, gap), 1.0), "time_limit": time_limit},
        )  # fmt: skip
    timed_out = result.status == 1
    proven = -np.inf if result.mip_dual_bound is None else float(result.mip_dual_bound) * unit + least.sum()
    if result.x is None:
        return None, proven, timed_out
    chosen = np.flatnonzero(result.x > 0.5)
    assert (group[chosen] == np.arange(len(core))).all()
    kept = (costs[:, group[chosen], rule[chosen]].sum(1) <= 1 + SLACK).all()
    return rule[chosen] if kept else None, proven, timed_out


def _conflict(limits: Sequence[Limit], time_limit: float) -> str:
    """Return the message for budgets that can be kept alone but not together: the smallest feasible value of each."""
    least = []
    for limit in limits:
        remaining = [other for other in limits if other is not limit]
        solution, _ = _attempt(limit.cost, remaining, 1e-5, time_limit)
        if solution is not None:  # None: the remaining limits conflict among themselves
            least.append(f"{_round_up(solution.value + limit.fixed)} for {limit.name}")
    if not least and len(limits) > 2:
        return _conflict(limits[1:], time_limit)
    names = " and ".join(limit.name for limit in limits)
    feasible = f"; smallest feasible values, the others kept: {', '.join(least)}" if least else ""
    return f"no plan keeps {names} together, though each alone can be kept{feasible}"


def _round_up(value: float) -> str:
    """Return `value` in four digits, rounded up, so that the figure printed is itself feasible."""
    step = 10.0 ** (np.floor(np.log10(value)) - 3) if value > 0 else 1.0
    return f"{np.ceil(value / step) * step:.6g}"
