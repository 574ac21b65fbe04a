"""Rounds: the next plan goes down the slopes that were measured around the last one, held back by harm."""

from dataclasses import replace

import numpy as np
import pytest

from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.descent import DAMPING, Descent
from moa.search.grid import grid
from moa.search.harm import harm, slope
from moa.search.objective import PLAIN, objective

N = 1024
BUDGET = [parse("density", "0.5")]


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


def descent(profile: Profile, plan: Plan, *rounds: Profile, text: float = 1.0, recall: float = 1.0) -> Descent:
    return Descent(plan, plan, rounds, text, recall)


def test_where_nothing_slopes_the_plan_stays(make_profile):
    profile = make_profile(layers=4)
    plan, _ = choose(profile, BUDGET, lengths=[N])
    again, _ = choose(profile, BUDGET, lengths=[N], descent=descent(profile, plan, around(profile, {})))
    assert np.array_equal(spans(again), spans(plan))


def test_the_next_plan_gives_what_the_slopes_ask_for_and_less_with_more_damping(make_profile):
    profile = make_profile(layers=4)
    plan, _ = choose(profile, BUDGET, lengths=[N])
    layer, head = (int(i) for i in np.unravel_index(spans(plan).argmin(), spans(plan).shape))
    step = descent(profile, plan, around(profile, {(layer, head): 1.0}))
    moved = []
    for _ in range(8):
        after, _ = choose(profile, BUDGET, lengths=[N], descent=step)
        assert after.density(N) <= 0.5
        moved.append(int(np.abs(spans(after) - spans(plan)).sum()))
        if moved[-1]:
            assert spans(after)[layer, head] > spans(plan)[layer, head]
        step = step.damped
    assert moved[0] > 0
    assert moved[-1] < moved[0]


def test_slopes_count_by_their_mean_and_in_their_unit(make_profile):
    profile = make_profile()
    rules = grid((N,), profile.sinks)
    plan = Plan.dense(profile.model)
    harms = np.zeros_like(objective(profile, rules, PLAIN, [N]))
    one, two = (around(profile, {(0, 0): cost}) for cost in (1.0, 3.0))

    def total(*profiles: Profile) -> np.ndarray:
        return descent(profile, plan, *profiles, text=2.0, recall=4.0).objective(harms, rules, [N])

    np.testing.assert_allclose(total(one, two), (total(one) + total(two)) / 2)
    shares = {s: 2.0 if s == "text" else 4.0 * (len(profile.sources) - 1) for s in profile.sources}
    own = sum(slope(one, rules, (s, N)) / shares[s] for s in profile.sources)
    np.testing.assert_allclose(total(one), own - own.min(1, keepdims=True))


def test_harm_counts_as_what_the_start_was_measured_at(make_profile):
    profile = make_profile()
    rules = grid((N,), profile.sinks)
    harms = objective(profile, rules, PLAIN, [N])
    plan, solution = choose(profile, BUDGET, lengths=[N])
    found = descent(profile, plan, around(profile, {})).objective(harms, rules, [N])
    full = int(np.flatnonzero(rules.spans(N) == N)[0])  # all harm undone: two kinds of text at 1 each
    assert found[:, full].sum() == pytest.approx(DAMPING * 2)
    assert solution.value == pytest.approx(harms[np.arange(len(harms)), solution.choice].sum())


def test_slopes_keep_their_sign(make_profile):
    profile = make_profile()
    rules = grid((N,), profile.sinks)
    [cut, *_] = [c for c in profile.cuts if c[1] == N]
    signed = replace(profile, cuts={cut: -profile.cuts[cut]})
    assert harm(signed, rules, cut).max() == 0  # as harm, what a cut improves does not count
    assert slope(signed, rules, cut).min() < 0
    twice = 2 if profile.estimator(cut[0]) == "fisher" else 1
    assert slope(profile, rules, cut) * twice == pytest.approx(-slope(signed, rules, cut) * twice)
