"""Fit the scale from the search's objective to nats, from the measured KL of a few plans."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from moa.plans.errors import MoaError
from moa.search.budget import Budget, limit
from moa.search.choose import choose
from moa.search.objective import candidates
from moa.search.question import Question
from moa.search.study import Evaluate


@dataclass(frozen=True)
class Scale:
    """The fitted scale KL = factor * objective ** power; the fit is of logarithms.

    Attributes:
        factor: KL at objective 1, nats per token.
        power: How fast KL grows with the objective.
        error: Median absolute error of the fit on its own points, as a share of the measured KL.
    """

    factor: float
    power: float
    error: float

    def nats(self, objective: float) -> float:
        """Return the KL that an objective stands for."""
        return float(self.factor * objective**self.power)

    def objective(self, nats: float) -> float:
        """Return the objective that a KL stands for."""
        return float((nats / self.factor) ** (1 / self.power))

    def reword(self, message: str, budget: str, typed: str) -> str:
        """Return the solver's message about `budget`, which limits the objective, in nats and with the name `typed`."""

        def nats(found: re.Match[str]) -> str:  # rounded up, so that the figure is itself feasible
            return f"{self.nats(float(found[1])) * 1.00051:.4g} for {typed}"

        return re.sub(rf"(\S+) for {re.escape(budget)}", nats, message).replace(budget, typed)


def fit(points: Sequence[tuple[float, float]]) -> Scale:
    """Return the scale fitted to some points.

    Args:
        points: (objective, measured KL) of each plan; points with a figure of 0, such as dense plans, are left out.

    Raises:
        MoaError: Fewer than two points have different objectives, or KL falls as the objective grows.
    """
    kept = np.array([p for p in points if min(p) > 0]).reshape(-1, 2)
    if len(np.unique(kept[:, 0])) < 2:
        raise MoaError(f"two plans or more of different harm are needed to calibrate, found {len(kept)}")
    x, y = np.log(kept).T
    power, log_factor = np.polyfit(x, y, 1)
    if power <= 0:
        raise MoaError("measured KL does not grow with the objective: the profile does not tell plans apart")
    scale = Scale(float(np.exp(log_factor)), float(power), 0.0)
    predicted = np.array([scale.nats(x) for x in kept[:, 0]])
    return Scale(scale.factor, scale.power, float(np.median(np.abs(predicted / kept[:, 1] - 1))))


def calibrate(question: Question, evaluate: Evaluate, count: int, progress: Callable[[int, int, str], None]) -> Scale:
    """Solve for `count` densities between the least and 0.8, measure each plan's KL, and fit the scale.

    Where rules may read less than they keep, the densities are those of what is read.

    Args:
        question: Names the profile, its mix and the lengths.
        evaluate: Measures a plan.
        count: Number of plans, 2 or more.
        progress: Called after each plan.

    Raises:
        MoaError: As `fit` does.
    """
    profile, longest, axis = question.profile, question.lengths.longest, "read" if question.reads else "density"
    rules = candidates(profile, question.mix, question.lengths, question.reads)
    kept = limit(Budget(axis, 1), rules, profile.model, longest)
    kept = kept.among(rules.everything(longest)) if question.keep_all else kept
    least = float(kept.cost.sum(0).min())
    points = []
    for i, density in enumerate(np.geomspace(least * 1.05, 0.8, count)):
        budget = Budget(axis, float(density))
        plan, solution = choose(
            profile, [budget], mix=question.mix, lengths=question.lengths, keep_all=question.keep_all
        )
        *_, measured = evaluate(plan)
        points.append((solution.value, measured.kl))
        what = f"{axis} {density:.2f}: objective {solution.value:.3g}, KL {measured.kl:.4f}"
        progress(i + 1, count, f"calibration: {what}")
    return fit(points)
