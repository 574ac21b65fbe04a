"""Provide `moa.find_plan`, which finds a plan from a profile and budgets, without the model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from statistics import median
from typing import Unpack

from moa.hf.load import Given, check_options, loaded
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.budget import FORMS, Budget, work
from moa.search.cost import Costs, Work
from moa.search.question import Figures, Options, Question
from moa.search.solver import Solution
from moa.version import __version__

Runner = Callable[[Plan, Work], list[float]]
"""Runs a plan on a model: milliseconds of some work, several times."""


@dataclass(frozen=True)
class Timed:
    """The predicted milliseconds of a plan at some work, beside measured ones.

    Attributes:
        work: A decode step or a prefill.
        why: The budget that limits it, or None.
        predicted: Milliseconds that the costs predict.
        measured: Median of the runs; None where nothing was run.
    """

    work: Work
    why: Budget | None
    predicted: float
    measured: float | None

    @property
    def error(self) -> float | None:
        """The difference of the prediction from what was measured, as a share of that; None where nothing was run."""
        return None if self.measured is None else self.predicted / self.measured - 1


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        plan: The plan.
        solution: Its objective, how close to the least it is proven to be, and how long the proof took.
        question: The completed question.
        times: Predicted times where costs are known.
    """

    plan: Plan
    solution: Solution
    question: Question
    times: tuple[Timed, ...] = ()


def find_plan(
    profile: Profile | str | PathLike[str], budgets: Mapping[str, Figures], *, measure: Given | None = None,
    **options: Unpack[Options],
) -> Found:  # fmt: skip
    """Find the plan of least harm within all budgets, or of least cost within them.

    Args:
        profile: A profile, or its file.
        budgets: Figures by kind (`density`, `read`, `kv_gb`, `decode_ms`, `prefill_ms`; `harm` with `minimise`): 0.25,
            "0.25@4096", "1.5@4096x8", or several. Without a length a budget holds at the longest intended one.
        measure: Model to time the plan on, to compare with what `costs` predict; a named one gets the costs' dtype.
        **options: As `moa.search.question.Options` describes them.

    Returns:
        The plan, with the proof of how good it is.

    Raises:
        BudgetInfeasible: No plan keeps the budgets; the error names the smallest that some plan keeps.
        MoaError: An option is invalid, or a file cannot be read.
    """
    question = Question.of(profile, budgets, __version__, **options)
    run = runner(question, measure) if measure is not None else None
    question.check()
    plan, solution = question.solve()
    return Found(plan, solution, question, timed(plan, question, run))


def runner(question: Question, model: Given) -> Runner:
    """Return what runs plans on the model, in the environment where the costs were measured.

    Raises:
        MoaError: There are no costs to compare with, or they belong to another environment.
        ModelMismatch: The model is not the one that was profiled.
    """
    from moa.measuring import runner_of

    costs, dtype = timed_by(question, model)
    question.check()
    check_options(model, {"the profile": question.profile.model})
    return runner_of(costs, loaded(model, dtype=dtype))


def timed_by(question: Question, model: Given, dtype: str = "auto") -> tuple[Costs, str]:
    """Return the costs that times are compared with, and the dtype to load `model` in, which is theirs.

    Raises:
        MoaError: No costs to compare with.
        ModelMismatch: Another dtype than theirs was asked for.
    """
    costs = question.costs
    if costs is None:
        raise MoaError("--measure compares with predicted times: give --costs")
    theirs = str(costs.environment["dtype"])
    if dtype not in ("auto", theirs):
        raise ModelMismatch(f"costs measured elsewhere (costs against here): dtype: {theirs} against {dtype}")
    return costs, dtype if isinstance(model, tuple) else theirs


def timed(plan: Plan, question: Question, run: Runner | None) -> tuple[Timed, ...]:
    """Return the times of all that is limited or minimised in milliseconds, else those of a step and a prefill."""
    costs, lengths = question.costs, question.lengths
    if costs is None:
        return ()
    limits: Sequence[Budget] = [*question.budgets, *filter(None, [question.minimise])]
    asked: list[tuple[Work, Budget | None]] = [
        (work(limit, limit.length or lengths.longest), limit) for limit in limits if FORMS[limit.kind].times
    ]
    return tuple(
        Timed(
            what, why, costs.predict(plan, what),
            None if run is None else median(ms for _ in range(3) for ms in run(plan, what)),
        )
        for what, why in asked or [(Work(kind, lengths.longest), None) for kind in costs.terms]
    )  # fmt: skip
