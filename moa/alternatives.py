"""Find what other budgets would give: a few plans of the front that a chosen plan is on."""

from dataclasses import replace
from time import perf_counter

from moa.fronts import Front
from moa.plans.errors import BudgetInfeasible
from moa.plans.plan import Plan
from moa.plans.progress import Note
from moa.resuming import Row, Spot
from moa.search.budget import Budget, taken
from moa.search.front import Point
from moa.search.question import Question

COUNT = 7
"""Budgets to solve for."""


def alternatives(question: Question, chosen: Plan, harm: float, room: float, note: Note) -> Row:
    """Return the chosen plan among those of smaller and larger budgets of its first kind, which keep the other budgets.

    Args:
        question: What the chosen plan answers.
        chosen: The plan.
        harm: Its predicted harm.
        room: Seconds for all of it. No further plan is solved for once they are over.
        note: Called with a line where plans are missing.
    """
    axis, *others = question.budgets
    asked = replace(question, budgets=tuple(others), time_limit=room / COUNT)
    points: list[Point] = []
    begin, most = perf_counter(), taken(Plan.dense(chosen.model), axis, question.costs)
    try:
        for point in Front(asked, COUNT, axis):
            points.append(point)
            if perf_counter() - begin > room and point.budget.most < most:
                note(f"front: {room:.0f} seconds were over at {point.budget}; larger budgets are left out")
                break
    except BudgetInfeasible as error:
        note(f"front: it ends early: {error}")
    spots = [_spot(point.plan, point.solution.value, axis, question, point.budget.most) for point in points]
    spots.append(_spot(chosen, harm, axis, question))
    assert axis.length is not None  # of a question that is complete
    placed = sorted(spots, key=lambda spot: spot.cost)
    return Row(kind=axis.kind, length=axis.length, batch=axis.batch, dtype=question.kv_dtype, plans=tuple(placed))


def _spot(plan: Plan, harm: float, axis: Budget, question: Question, budget: float | None = None) -> Spot:
    n = axis.length
    assert n is not None
    return Spot(
        budget=axis.most if budget is None else budget, cost=taken(plan, axis, question.costs), harm=harm,
        density=plan.density(n), read=plan.read_density(n), kv_bytes=plan.kv_bytes(n, axis.batch, question.kv_dtype),
        chosen=budget is None,
    )  # fmt: skip
