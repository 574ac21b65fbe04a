"""Find the front: plans from the smallest to dense, each with less harm than all that keep less."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moa.plans.errors import MoaError
from moa.plans.model import Dtype
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.budget import ASSUMED, Budget, limit
from moa.search.choose import choose
from moa.search.cost import Costs
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, Mix, candidates
from moa.search.reads import may_read
from moa.search.solver import Solution


@dataclass(frozen=True)
class Point:
    """A plan of the front.

    Attributes:
        plan: The plan.
        budget: The budget that it was solved for.
        solution: Its harm, and how close to the least the harm is proven to be.
    """

    plan: Plan
    budget: Budget
    solution: Solution


def front(
    profile: Profile, count: int, axis: Budget, budgets: Sequence[Budget] = (), *,
    mix: Mix = PLAIN, costs: Costs | None = None, lengths: Lengths | None = None, time_limit: float = 60.0,
    kv_dtype: Dtype | None = None, keep_all: bool = False,
) -> Iterator[Point]:  # fmt: skip
    """Solve for `count` budgets in equal ratios, from the least that any plan needs to what full attention takes.

    Args:
        profile: The profile.
        count: Number of budgets, 2 or more. Those that give a plan no better than the one before are left out.
        axis: The budget to vary, with its length and batch; its figure does not count.
        budgets: Other budgets, which every plan keeps.
        mix: As for `choose`.
        costs: Measured costs, for budgets in milliseconds.
        lengths: As for `choose`.
        time_limit: Seconds for each plan.
        kv_dtype, keep_all: As for `choose`.

    Yields:
        Points with rising budgets and falling harm, as they are found.

    Raises:
        BudgetInfeasible: The other budgets cannot be kept together with the least of this one.
        MoaError: The count is below 2, or `choose` refuses the arguments.
    """
    if count < 2:
        raise MoaError(f"a front has 2 plans or more, found {count}")
    harm, lengths = np.inf, lengths or Lengths.of(profile)
    axis = axis.stored(kv_dtype or profile.dtype or ASSUMED)
    for figure in np.geomspace(*_range(profile, axis, budgets, costs, lengths, keep_all), count):
        budget = replace(axis, most=_round_up(float(figure)))
        plan, solution = choose(
            profile, [budget, *budgets], mix=mix, costs=costs, lengths=lengths, time_limit=time_limit,
            kv_dtype=kv_dtype, keep_all=keep_all,
        )  # fmt: skip
        if solution.value < harm:
            harm = solution.value
            yield Point(plan, budget, solution)


def _range(
    profile: Profile, axis: Budget, budgets: Sequence[Budget], costs: Costs | None, lengths: Lengths, keep_all: bool
) -> tuple[float, float]:
    """Return the least budget that some plan keeps, and what full attention takes."""
    rules = candidates(profile, PLAIN, lengths, may_read(profile, (axis, *budgets), costs))
    kept = limit(axis, rules, profile.model, lengths.longest, costs)
    kept = kept.among(rules.everything(lengths.longest)) if keep_all else kept
    total = kept.fixed + kept.cost.sum(0)  # the same rule in every group
    return float(total.min()), float(total.max())


def _round_up(value: float) -> float:
    """Return `value` in six digits, rounded up, so that provenance and table show the very budget that was solved."""
    step = 10.0 ** (math.floor(math.log10(value)) - 5)
    return float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.6g}")
