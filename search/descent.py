"""Improve a plan by how the divergence from the dense model on text changes around it, measured there.

The profile judges every cut while all other groups are dense, and adds the cuts up. Around a plan the divergence from
the dense model has a slope in every cut of every group (`moa profile --around PLAN --estimator effect --loss kl`),
which accounts for the other cuts. So the exact solver looks for the plan of least

    sum over groups of  recall(rule) + slope(rule) + damping * |text(rule) - text(rule now)|

where `text` and `recall` are the objective's parts. This is a Newton step whose curvature is the profile's harm, a
quantity of second order. At the dense model, where all slopes are 0, it is the search by the profile. When a plan is no
better than the last, the step is tried again with more damping, as in the method of Levenberg and Marquardt. Slopes are
means over the rounds so far, since each is noisy. Recall keeps the profile's harm: slopes of the divergence on answers
follow the form of the questions, and lose what other questions need (docs/experiments/rounds.md). So does what rules
lose on text by reading less than they keep, since slopes are those of passes that read all that is kept.
"""

from dataclasses import dataclass, replace

import numpy as np

from moa.plans.plan import Plan
from moa.plans.span import Floats, Ints
from moa.profiler.profile import Profile
from moa.search.grid import Grid
from moa.search.harm import slope
from moa.search.objective import Mix

TRIES = 3
"""Steps tried in a round, each further one with twice the damping."""


@dataclass(frozen=True)
class Descent:
    """The state of a descent: what the rounds so far found.

    Attributes:
        start: The plan before the first round.
        plan: The plan to continue from.
        rounds: Slopes around each plan so far, of text: estimator `effect`, loss `kl`.
        kl: KL of `start` on text, nats per token, which corresponds to its harm on text.
        damping: Weight of the profile's harm, which shortens a step.
    """

    start: Plan
    plan: Plan
    rounds: tuple[Profile, ...]
    kl: float
    damping: float = 1.0

    @property
    def damped(self) -> "Descent":
        """Return the same descent with twice the damping."""
        return replace(self, damping=2 * self.damping)

    def objective(self, text: Floats, recall: Floats, rules: Grid, mix: Mix, read: Floats | float = 0.0) -> Floats:
        """Return what the next plan minimises, given the objective's parts: [groups, rules], the least of a group 0.

        `read` is the part of `text` that rules lose by reading less than they keep.
        """
        kept = text - read
        cuts = [(p, cut) for p in self.rounds for cut in p.cuts]
        weights = [mix.sources.get(source, 1.0) * mix.lengths.get(n, 1.0) for _, (source, n) in cuts]
        slopes = np.average([slope(p, rules, cut) for p, cut in cuts], axis=0, weights=weights)
        change = slopes * self._per_nat(text, rules)
        total = recall + read + change + self.damping * np.abs(kept - _of(self.plan, kept, rules)[:, None])
        least: Floats = total - total.min(1, keepdims=True)
        return least

    def merit(self, text: Floats, recall: Floats, rules: Grid, plan: Plan, kl: float) -> float:
        """Return the figure that a plan is judged by (less is better): its harm on recall, and what text measured."""
        return float(_of(plan, recall, rules).sum() + kl * self._per_nat(text, rules))

    def _per_nat(self, text: Floats, rules: Grid) -> float:
        return float(_of(self.start, text, rules).sum()) / self.kl


def _of(plan: Plan, harms: Floats, rules: Grid) -> Floats:
    """Return what the plan's rules cost: [groups]."""
    known = {rule: i for i, rule in enumerate(rules.rules)}
    choice: Ints = np.array([known[rule] for layer in plan.model.ruled_layers for rule in plan.groups[layer]])
    return harms[np.arange(len(choice)), choice]
