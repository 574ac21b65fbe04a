"""Going on from a plan: how the divergence from the dense model changes around it, measured there.

The profile judges every cut with all else dense, and adds the cuts up. Around a plan the divergence from the dense
model has a slope in every cut of every group (`moa profile --around PLAN --estimator effect --loss kl`), which knows
what else is cut. So the search goes down it, a step at a time: the exact solver again, for the plan of least slope
among those near the last one (a successive linear program with a trust region). Slopes of earlier rounds still count,
since each is noisy and the plans lie close together, and so does the profile, which knows how harm bends.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moa.plans.plan import Plan
from moa.plans.span import Floats
from moa.profiler.profile import Profile
from moa.search.grid import Grid
from moa.search.harm import slope
from moa.search.solver import Limit

PRIOR = 0.5
"""Weight of the profile's harm beside one round's slopes, once both are on one scale."""
STEP = 0.05
"""How far the first round's plan may lie from the last one: the mean over groups of the change of span/n."""


@dataclass(frozen=True)
class Descent:
    """What the rounds so far found.

    Attributes:
        plan: The plan to go on from.
        rounds: Slopes around each plan so far: estimator `effect`, loss `kl`.
        text: KL on text that counts as 1, nats per token.
        recall: KL on answers about facts that counts as 1.
    """

    plan: Plan
    rounds: tuple[Profile, ...]
    text: float
    recall: float

    def objective(self, harms: Floats, rules: Grid, lengths: Sequence[int]) -> Floats:
        """What the next plan makes least, from the profile's `harms`: [groups, rules], the least of a group 0."""
        slopes = np.mean([self._slopes(profile, rules, lengths) for profile in self.rounds], axis=0)
        worst = np.maximum(slopes.max(1), 0).sum()
        prior = harms * (worst / max(harms.max(1).sum(), 1e-12))
        total = PRIOR * prior + len(self.rounds) * slopes
        least: Floats = total - total.min(1, keepdims=True)
        return least

    def near(self, rules: Grid, lengths: Sequence[int]) -> list[Limit]:
        """The trust region, one limit per length: steps get shorter by the root of the round."""
        step, ruled = STEP / len(self.rounds) ** 0.5, list(self.plan.model.ruled_layers)
        found = []
        for n in lengths:
            now = self.plan.spans(n)[ruled].reshape(-1, 1)
            found.append(Limit(f"change@{n}", np.abs(rules.spans(n) - now) / (n * len(now)), step))
        return found

    def _slopes(self, profile: Profile, rules: Grid, lengths: Sequence[int]) -> Floats:
        """Of one round: a text and the mean of the tasks, each where its divergence counts as 1, mean over lengths."""
        tasks = [source for source in profile.sources if source != "text"]
        total = 0.0
        for source in profile.sources:
            unit = self.text if source == "text" else self.recall * len(tasks)
            total = total + np.mean([slope(profile, rules, (source, n)) for n in lengths], axis=0) / unit
        return np.asarray(total)
