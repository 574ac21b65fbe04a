"""Choose the plan for a profile and budgets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from moa.plans.errors import MoaError
from moa.plans.model import Dtype
from moa.plans.plan import Plan, Predicted, Provenance
from moa.plans.span import Floats, Ints
from moa.profiler.profile import Profile, digest
from moa.search.budget import ASSUMED, FORMS, Budget, limit
from moa.search.cost import Costs, Work
from moa.search.descent import Descent
from moa.search.grid import Grid
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, Harms, Mix, candidates, measured, parts
from moa.search.reads import may_read
from moa.search.solver import Limit, Solution, check, solve


@dataclass(frozen=True)
class Problem:
    """A search as the solver takes it.

    Attributes:
        rules: Candidate rules.
        text: Their harm by sources of plain text and documents: [groups, rules].
        recall: Their harm by sources that ask for facts: [groups, rules].
        harms: The harms that both are mixed from.
        limits: All budgets.
        least: The cost to minimise; None for the harm.
        free: Which rules may be chosen. The others only give the harms their scale.
    """

    rules: Grid
    text: Floats
    recall: Floats
    harms: Harms
    limits: list[Limit]
    least: Limit | None
    free: Ints | slice


def choose(
    profile: Profile, budgets: Sequence[Budget], *, mix: Mix = PLAIN,
    costs: Costs | None = None, minimise: Budget | None = None, lengths: Lengths | None = None,
    descent: Descent | None = None, time_limit: float = 60.0, provenance: Provenance | None = None,
    kv_dtype: Dtype | None = None, keep_all: bool = False,
) -> tuple[Plan, Solution]:  # fmt: skip
    """Return the plan of least harm within the budgets; with `minimise` the one of least cost, with a budget on harm.

    Args:
        profile: What the cuts cost.
        budgets: The plan keeps all of them. One of kind `harm` limits the objective, and only makes sense with
            `minimise`.
        mix: How sources and lengths are weighed.
        costs: Measured costs, for budgets in milliseconds.
        minimise: The cost to minimise, at one length; its figure does not count.
        lengths: Lengths that the plan is for; None for all profiled ones and longer ones (`Lengths.of`).
        descent: Improves an earlier plan by what was measured around it, instead of using the profile alone.
        time_limit: Seconds for the solver.
        provenance: Recorded in the plan.
        kv_dtype: Dtype of the cache, in budgets and predictions in bytes; None for that of the profile, or `ASSUMED` if
            the profile does not say.
        keep_all: Whether every group keeps everything, so that only what it reads is chosen.

    Raises:
        BudgetInfeasible: No plan keeps the budgets.
        MoaError: No budget, or a mix that does not fit the profile; or everything is kept, and nothing else chosen.
    """
    if descent is not None and minimise is not None:
        raise MoaError("a descent makes harm least: no minimise with it")
    kv_dtype = kv_dtype or profile.dtype or ASSUMED
    lengths = lengths or Lengths.of(profile)
    problem = pose(
        profile, budgets, mix=mix, costs=costs, minimise=minimise, lengths=lengths, kv_dtype=kv_dtype, keep_all=keep_all
    )
    rules, whole = problem.rules, problem.text + problem.recall
    if descent is not None:
        keeping = parts(profile, rules, mix, lengths, Harms(problem.harms.kept, {}))[0]
        goal = descent.objective(problem.text, problem.recall, rules, mix, problem.text - keeping)
    else:
        goal = whole if problem.least is None else problem.least.cost
    free = problem.free
    solution = solve(goal[:, free], [each.among(free) for each in problem.limits], time_limit=time_limit)
    solution = replace(solution, choice=np.arange(len(rules))[free][solution.choice])
    if problem.least is not None:
        solution = solution.plus(problem.least.fixed)
    model = profile.model
    chosen = [rules.rules[int(i)] for i in solution.choice]
    by_layer = np.arange(len(chosen)).reshape(-1, model.kv_heads)
    plan = Plan.from_rules(
        model, {layer: [chosen[i] for i in row] for layer, row in zip(model.ruled_layers, by_layer, strict=True)}
    )
    predicted = Predicted(
        lengths=lengths.all,
        measured_to=lengths.profiled[-1],
        density=[round(plan.density(n), 4) for n in lengths.all],
        read_density=[round(plan.read_density(n), 4) for n in lengths.all] if plan.reads() else None,
        kv_bytes=[plan.kv_bytes(n, dtype=kv_dtype) for n in lengths.all],
        kv_dtype=kv_dtype,
        harm=_harms(profile, problem, mix, lengths, solution.choice),
        **({} if costs is None else _times(costs, plan, lengths.all)),
    )
    return plan.model_copy(update={"predicted": predicted, "provenance": provenance}), solution


def pose(
    profile: Profile, budgets: Sequence[Budget], *, mix: Mix = PLAIN, costs: Costs | None = None,
    minimise: Budget | None = None, lengths: Lengths | None = None, kv_dtype: Dtype | None = None,
    keep_all: bool = False,
) -> Problem:  # fmt: skip
    """Return the problem that `choose` solves for the same arguments; refuse what can be refused without solving.

    Raises:
        BudgetInfeasible: A budget that no plan keeps.
        MoaError: No budget, or a mix, lengths or costs that do not fit; or everything is kept, and nothing else chosen.
    """
    if not budgets:
        raise MoaError("give at least one budget, such as --max-density 0.5")
    lengths = lengths or Lengths.of(profile)
    kv_dtype = kv_dtype or profile.dtype or ASSUMED
    most = profile.max_length
    for budget in (*budgets, *([] if minimise is None else [minimise])):
        if most and budget.length and budget.length > most:
            raise MoaError(f"the length of {budget} must be at most {most}, the longest text that the model takes")
    if keep_all:
        _check_free(profile, [budget for budget in (*budgets, minimise) if budget is not None], costs)
    rules = candidates(profile, mix, lengths, may_read(profile, (*budgets, minimise), costs))
    if costs is not None:
        costs.check(profile.model, rules.rules)
    harms = measured(profile, rules, lengths)
    text, recall = parts(profile, rules, mix, lengths, harms)

    def limited(budget: Budget) -> Limit:
        if budget.kind == "harm":
            return Limit(str(budget), text + recall, budget.most)
        return limit(budget.stored(kv_dtype), rules, profile.model, lengths.longest, costs)

    kept = [limited(budget) for budget in budgets]
    free: Ints | slice = rules.everything(lengths.longest) if keep_all else slice(None)
    check([each.among(free) for each in kept])
    return Problem(rules, text, recall, harms, kept, None if minimise is None else limited(minimise), free)


def _check_free(profile: Profile, limits: Sequence[Budget], costs: Costs | None) -> None:
    """Refuse to keep everything where a limit is of what is kept, or none lets rules read less."""
    if of_kept := [limit for limit in limits if FORMS[limit.kind].kept]:
        raise MoaError(f"--keep-all keeps everything: no limit of what is kept goes with it, found {of_kept[0].kind}")
    if not may_read(profile, limits, costs):
        raise MoaError(
            "--keep-all chooses only what steps read: give --max-read, or --max-decode-ms with a profile and costs "
            "that know reads"
        )


def _harms(profile: Profile, problem: Problem, mix: Mix, lengths: Lengths, choice: Ints) -> list[float]:
    """Return the objective of a choice at each length, as if the plan were for that length alone."""
    tables = [problem.text + problem.recall]
    if len(lengths.all) > 1:
        nothing = dict.fromkeys(lengths.all, 0.0)
        alone = [replace(mix, lengths={**nothing, n: 1.0}) for n in lengths.all]
        tables = [np.add(*parts(profile, problem.rules, each, lengths, problem.harms)) for each in alone]
    return [float(f"{table[np.arange(len(choice)), choice].sum():.4g}") for table in tables]


def _times(costs: Costs, plan: Plan, lengths: Sequence[int]) -> dict[str, Any]:
    """Return the predicted milliseconds of one sequence, the error of the fit, and what they hold for."""
    return {
        **{f"{kind}_ms": [round(costs.predict(plan, Work(kind, n)), 2) for n in lengths] for kind in costs.terms},
        "error": {f"{kind}_ms": round(error, 4) for kind, error in costs.error.items()},
        "device": costs.place,
    }


def record(
    path: Path | None, profile: Profile, budgets: Sequence[Budget], tool: str, weights: Mapping[str, float]
) -> Provenance:
    """Return where a plan comes from; `path` is the profile's file, if any, `weights` those of sources (default 1)."""
    sources = [s if (weight := weights.get(s, 1.0)) == 1 else f"{s}={weight:g}" for s in profile.sources]
    return Provenance(
        tool=tool, profile=None if path is None else digest(path), calibration=", ".join(sources),
        budget=", ".join(map(str, budgets)), seed=int(profile.meta.get("seed", 0)), date=date.today(),
    )  # fmt: skip
