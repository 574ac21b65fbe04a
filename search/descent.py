"""Going on from a plan: how the divergence from the dense model changes around it, measured there.

The profile judges every cut with all else dense, and adds the cuts up. Around a plan the divergence from the dense
model has a slope in every cut of every group (`moa profile --around PLAN --estimator effect --loss kl`), which knows
what else is cut. So the search goes down it: the exact solver again, for the plan of least

    sum over groups of  slope(rule) + damping * |harm(rule) - harm(rule now)|

a Newton step whose curvature is the profile's harm, which is one of second order. At the dense model, where all slopes
are 0, this is the search by the profile. A plan that is no better than the last is tried again with more damping, as in
the method of Levenberg and Marquardt. Slopes are means over the rounds so far, since each is noisy.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from moa.plans.plan import Plan
from moa.plans.span import BETA_STEPS, Floats, Ints
from moa.profiler.profile import Profile
from moa.search.grid import Grid
from moa.search.harm import slope

DAMPING = 2.0
"""Of the first step; 1 would trust harm for how fast slopes change, which is less than was measured."""
TRIES = 3
"""Steps tried in a round, each with twice the damping."""


@dataclass(frozen=True)
class Descent:
    """What the rounds so far found.

    Attributes:
        start: The plan before the first round.
        plan: The plan to go on from.
        rounds: Slopes around each plan so far: estimator `effect`, loss `kl`.
        text: KL of `start` on text, nats per token; it counts as 1.
        recall: KL of `start` on answers about facts; it counts as 1.
        damping: How much the profile's harm holds a step back.
    """

    start: Plan
    plan: Plan
    rounds: tuple[Profile, ...]
    text: float
    recall: float
    damping: float = DAMPING

    @property
    def damped(self) -> "Descent":
        """The same with twice the damping."""
        return replace(self, damping=2 * self.damping)

    def objective(self, harms: Floats, rules: Grid, lengths: Sequence[int]) -> Floats:
        """What the next plan makes least, from the profile's `harms`: [groups, rules], the least of a group 0."""
        groups = np.arange(len(harms))
        kinds = len({source == "text" for source in self.rounds[0].sources})
        harms = harms * (kinds / max(harms[groups, _choice(self.start, rules)].sum(), 1e-12))
        now = harms[groups, _choice(self.plan, rules)]
        slopes = np.mean([self._slopes(profile, rules, lengths) for profile in self.rounds], axis=0)
        total = slopes + self.damping * np.abs(harms - now[:, None])
        least: Floats = total - total.min(1, keepdims=True)
        return least

    def _slopes(self, profile: Profile, rules: Grid, lengths: Sequence[int]) -> Floats:
        """Of one round: text and the mean of the tasks, in what they count; means over lengths."""
        tasks = sum(source != "text" for source in profile.sources)
        total = np.zeros((len(profile.model.ruled_layers) * profile.model.kv_heads, len(rules)))
        for source in profile.sources:
            unit = self.text if source == "text" else self.recall * tasks
            total += np.mean([slope(profile, rules, (source, n)) for n in lengths], axis=0) / unit
        return total


def _choice(plan: Plan, rules: Grid) -> Ints:
    """Which of `rules` each group of the plan has: [groups]."""
    known = {rule: i for i, rule in enumerate(zip(rules.sink, rules.alpha, rules.beta256, strict=True))}
    of = (rule for layer in plan.model.ruled_layers for rule in plan.groups[layer])
    return np.array([known[rule.sink, rule.alpha, round(rule.beta * BETA_STEPS)] for rule in of], np.int64)
