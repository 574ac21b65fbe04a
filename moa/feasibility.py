"""Refuse what `moa.compress` could not do before it profiles anything."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from moa.diagnosing import SPAN
from moa.hf.limits import SHORTEST
from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.model import ModelInfo
from moa.plans.patterns import Rule
from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa.profiler.profile import Profile
from moa.profiler.read_tables import ReadTables
from moa.profiler.reads import SHARES
from moa.profiler.settings import every, no_reads
from moa.search.budget import FORMS, Budget
from moa.search.cost import Costs
from moa.search.question import Figures, Question
from moa.version import __version__

LENGTHS = 1024, 2048, 4096
"""The lengths that are aimed at, as `moa.profile_model` takes them by default."""


def aimed_lengths(lengths: Sequence[int] | None, longest: int | None) -> tuple[int, ...]:
    """Return the lengths to measure at if time allows, ascending; those of a short model end at its longest text."""
    if lengths:
        return tuple(sorted(set(lengths)))
    if longest is not None and longest < SHORTEST:
        raise MoaError(f"the model's longest text has {longest} tokens; shorter than {SHORTEST}, a plan gains nothing")
    return tuple(n for n in LENGTHS if longest is None or n <= longest) or (int(longest or 0),)


def check_budgets(
    budgets: Mapping[str, Figures], model: ModelInfo, lengths: Sequence[int], longest: int | None,
    max_length: int | None, dtype: Any, costs: Costs | None = None,
) -> tuple[Budget, ...]:  # fmt: skip
    """Return the budgets, of which no plan keeps none: they are refused before anything is profiled.

    Those in milliseconds are refused once costs are known.

    Raises:
        BudgetInfeasible: No plan keeps a budget.
        MoaError: A budget is written in another way.
    """
    n = max(lengths)
    blank = Profile(model, every(model), {}, {}, {}, {"max_length": longest, "dtype": str(dtype)})
    table = {("text", n): np.zeros(blank.shape(n), np.float32)}
    once = dict.fromkeys(table, 1)
    zeros = np.zeros((len(blank.variants), len(SHARES), len(model.ruled_layers), model.kv_heads), np.float32)
    reads = None if no_reads(model) else ReadTables(SHARES, {("text", n): zeros}, once)
    blank = Profile(model, every(model), table, once, once, blank.meta, reads=reads)
    question = Question.of(blank, budgets, __version__, max_length=max_length, costs=costs)
    if any(limit.kind == "read" for limit in question.budgets) and (why := no_reads(model)):
        raise MoaError(f"{why}, so nothing less can be asked for")
    known = [limit for limit in question.budgets if costs is not None or not FORMS[limit.kind].times]
    try:
        if known or not question.budgets:
            replace(question, budgets=tuple(known)).check()
    except BudgetInfeasible as error:
        raise BudgetInfeasible(f"{error}{_too_short(question.budgets, model)}") from None
    return question.budgets


def _too_short(budgets: Sequence[Budget], model: ModelInfo) -> str:
    """Return from which length on some plan keeps a density; empty for other budgets."""
    narrowest = Plan.from_rules(model, {}, defaults=Rule(alpha=2 * BLOCK, beta=0))
    n = next((n for n in SPAN if narrowest.density(n) <= min(budget.most for budget in budgets)), None)
    if n is None or any(budget.kind != "density" for budget in budgets):
        return ""
    return f"; the texts are too short for it, some plan keeps it from {n:,} tokens on"
