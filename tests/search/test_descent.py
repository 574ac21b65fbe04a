"""Rounds: the next plan goes down the slopes that were measured around the last one, no further than its step."""

from dataclasses import replace

import numpy as np
import pytest

from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.descent import STEP, Descent
from moa.search.grid import grid
from moa.search.harm import harm, slope
from moa.search.objective import PLAIN, objective

N = 1024


def spans(plan: Plan) -> np.ndarray:
    return plan.spans(N)[list(plan.model.ruled_layers)]


def around(profile: Profile, steep: dict[tuple[int, int], float]) -> Profile:
    """Slopes as a round has them: every hidden block costs a group as much as `steep` says, others nothing."""
    tables = {}
    for cut, table in profile.cuts.items():
        new = np.zeros_like(table)
        for (layer, head), cost in steep.items():
            new[:, layer, head] = np.tril(np.arange(table.shape[4]) * np.ones((table.shape[3], 1))) * cost
        tables[cut] = new
    return replace(profile, cuts=tables, estimators=dict.fromkeys(profile.sources, "effect"))


def test_the_next_plan_is_near_and_gives_what_the_slopes_ask_for(make_profile):
    profile = make_profile(layers=4)
    budget = [parse("density", "0.5")]
    plan, _ = choose(profile, budget, lengths=[N])
    narrowest = np.unravel_index(spans(plan).argmin(), spans(plan).shape)
    wanted = int(narrowest[0]), int(narrowest[1])
    descent = Descent(plan, (around(profile, {wanted: 10.0}),), text=1.0, recall=1.0)
    after, _ = choose(profile, budget, lengths=[N], descent=descent)
    assert after.density(N) <= 0.5
    assert spans(after)[wanted] > spans(plan)[wanted]
    moved = np.abs(spans(after) - spans(plan)).sum() / N / spans(plan).size
    assert 0 < moved <= STEP + 1e-9
    later = replace(descent, rounds=descent.rounds * 4)  # a quarter of the mean square: half the step
    after, _ = choose(profile, budget, lengths=[N], descent=later)
    assert np.abs(spans(after) - spans(plan)).sum() / N / spans(plan).size <= STEP / 2 + 1e-9


def test_slopes_of_both_rounds_count_by_their_mean(make_profile):
    profile = make_profile()
    rules = grid((N,), profile.sinks)
    plan = Plan.dense(profile.model)
    harms = np.zeros_like(objective(profile, rules, PLAIN, [N]))
    rounds = [around(profile, {(0, 0): cost}) for cost in (1.0, 3.0)]

    def total(*profiles: Profile) -> np.ndarray:
        return Descent(plan, profiles, text=2.0, recall=4.0).objective(harms, rules, [N])

    np.testing.assert_allclose(total(*rounds) / 2, (total(rounds[0]) + total(rounds[1])) / 2)
    shares = {"text": 2.0} | {s: 4.0 * (len(profile.sources) - 1) for s in profile.sources if s != "text"}
    own = sum(slope(rounds[0], rules, (s, N)) / shares[s] for s in profile.sources)
    np.testing.assert_allclose(total(rounds[0]), own - own.min(1, keepdims=True))


def test_slopes_keep_their_sign(make_profile):
    profile = make_profile()
    rules = grid((N,), profile.sinks)
    [cut, *_] = [c for c in profile.cuts if c[1] == N]
    signed = replace(profile, cuts={cut: -profile.cuts[cut]})
    assert harm(signed, rules, cut).max() == 0  # as harm, what a cut improves does not count
    assert slope(signed, rules, cut).min() < 0
    twice = 2 if profile.estimator(cut[0]) == "fisher" else 1
    assert slope(profile, rules, cut) * twice == pytest.approx(-slope(signed, rules, cut) * twice)
