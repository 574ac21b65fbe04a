"""From a profile and budgets to a plan."""

from collections.abc import Mapping, Sequence
from datetime import date
from math import inf
from pathlib import Path

import numpy as np

from moa.plans.errors import MoaError
from moa.plans.plan import Plan, Predicted, Provenance
from moa.plans.span import Floats
from moa.profiler.profile import Profile, digest
from moa.search.budget import Budget, limits
from moa.search.cost import Costs
from moa.search.grid import Grid, grid
from moa.search.harm import harm
from moa.search.solver import Limit, Solution, solve

RECALL = 0.25
"""Power of the hidden share of the text in what a rule costs a group that recalls facts."""


def objective(
    profile: Profile, rules: Grid, weights: Mapping[str, float], lengths: Sequence[int] | None = None
) -> Floats:
    """What the search minimises the sum of: [groups, rules].

    Where a source's estimator is `effect`, facts are asked for that may lie anywhere, and every group on the way to the
    answer must see them: what a rule costs is the group's harm under the narrowest rule, at the shortest length
    measured, times a power of the share of the text that the rule hides. Otherwise it is the rule's own harm. Each is
    brought to one scale, the narrowest rule everywhere, then averaged over lengths and mixed over sources.

    Args:
        profile: The profile.
        rules: Candidate rules.
        weights: Weight of each source; sources not named count 1, those at 0 are left out.
        lengths: Profiled lengths that count, None for all.

    Raises:
        MoaError: A source the profile does not have, or no weight left.
    """
    unknown = set(weights) - set(profile.sources)
    if unknown:
        raise MoaError(f"sources of this profile are {', '.join(profile.sources)}, found {', '.join(sorted(unknown))}")
    mixed = {source: weights.get(source, 1.0) for source in profile.sources}
    if not all(0 <= weight < inf for weight in mixed.values()) or not any(mixed.values()):
        raise MoaError(f"source weights must be 0 or more, and one over 0, found {mixed}")
    lengths = profile.lengths if lengths is None else lengths
    hidden = [1 - rules.spans(n) / n for n in lengths]
    reach = np.mean([share**RECALL for share in hidden], axis=0)
    harms = harm(profile, rules)
    total = np.zeros(next(iter(harms.values())).shape)
    for source, weight in mixed.items():
        if profile.estimator(source) == "effect":
            shortest = min(n for other, n in harms if other == source)
            costs = [harms[source, shortest].max(1)[:, None] * reach]
        else:
            costs = [harms[source, n] for n in lengths if (source, n) in harms]
        for cost in costs:
            narrowest = cost.max(1).sum()
            if narrowest > 0:
                total += weight / len(costs) * cost / narrowest
    return total


def choose(
    profile: Profile, budgets: Sequence[Budget], *, weights: Mapping[str, float] | None = None,
    costs: Costs | None = None, minimise: Budget | None = None, lengths: Sequence[int] | None = None,
    time_limit: float = 60.0, provenance: Provenance | None = None,
) -> tuple[Plan, Solution]:  # fmt: skip
    """The plan of least harm within the budgets, or with `minimise` of least cost within them, one of them on harm.

    Args:
        profile: What the cuts cost.
        budgets: All to be kept. One of kind `harm` limits the objective, and only makes sense with `minimise`.
        weights: Weight of each source, 1 where not named.
        costs: Measured costs, for budgets in milliseconds.
        minimise: The cost to make least, at one length; its figure does not count.
        lengths: Profiled lengths the plan is for, None for all of them.
        time_limit: Seconds for the solver.
        provenance: Recorded in the plan.

    Raises:
        BudgetInfeasible: No plan keeps the budgets.
        MoaError: No budget, or weights that do not fit the profile.
    """
    if not budgets:
        raise MoaError("give at least one budget, such as --max-density 0.5")
    model = profile.model
    if lengths is not None and not set(lengths) <= set(profile.lengths):
        raise MoaError(f"lengths must be of the profiled {list(profile.lengths)}, found {list(lengths)}")
    lengths = profile.lengths if lengths is None else tuple(sorted(lengths))
    rules = grid(lengths, profile.sinks)
    harms = objective(profile, rules, weights or {}, lengths)
    kept = []
    for budget in budgets:
        if budget.kind == "harm":
            kept.append(Limit(str(budget), harms, budget.most))
        else:
            kept += limits(budget, rules, model, lengths, costs)
    if minimise is None:
        solution = solve(harms, kept, time_limit=time_limit)
    else:
        [least] = limits(minimise, rules, model, lengths, costs)
        solution = solve(least.cost, kept, time_limit=time_limit).plus(least.fixed)
    chosen = [rules.rule(int(i)) for i in solution.choice]
    by_layer = np.arange(len(chosen)).reshape(-1, model.kv_heads)
    plan = Plan.from_rules(
        model, {layer: [chosen[i] for i in row] for layer, row in zip(model.ruled_layers, by_layer, strict=True)}
    )
    predicted = Predicted(
        lengths=list(lengths),
        density=[round(plan.density(n), 4) for n in lengths],
        kv_bytes=[plan.kv_bytes(n, dtype="bfloat16") for n in lengths],
    )
    return plan.model_copy(update={"predicted": predicted, "provenance": provenance}), solution


def record(path: Path, profile: Profile, budgets: Sequence[Budget], tool: str) -> Provenance:
    """Where a plan comes from."""
    return Provenance(
        tool=tool, profile=digest(path), calibration=", ".join(profile.sources),
        budget=", ".join(map(str, budgets)), seed=int(profile.meta.get("seed", 0)), date=date.today(),
    )  # fmt: skip
