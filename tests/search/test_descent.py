"""Rounds: the next plan goes down the slopes that were measured around the last one, held back by harm."""

from dataclasses import replace

import numpy as np
import pytest

from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.descent import Descent, _of
from moa.search.grid import grid
from moa.search.harm import harm, slope
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, candidates, measured, parts

N = 1024
BUDGET = [parse("density", "0.5")]


def spans(plan: Plan) -> np.ndarray:
    return plan.spans(N)[list(plan.model.ruled_layers)]


@pytest.fixture
def make_asking(make_profile):
    """A profile of four layers, whose facts are asked for."""

    def make(**more: object) -> Profile:
        return replace(make_profile(layers=4, **more), estimators={"text": "fisher", "facts": "effect"})

    return make


def around(profile: Profile, steep: dict[tuple[int, int], float]) -> Profile:
    """Slopes as a round has them, of text: every hidden block costs a group as `steep` says, others nothing."""
    tables = {}
    for cut, table in profile.cuts.items():
        if cut == ("text", N):
            tables[cut] = new = np.zeros_like(table)
            for (layer, head), cost in steep.items():
                new[:, layer, head] = np.tril(np.arange(table.shape[4]) * np.ones((table.shape[3], 1))) * cost
    return replace(profile, cuts=tables, estimators={"text": "effect"})


def descent(profile: Profile, plan: Plan, *rounds: Profile, kl: float = 1.0) -> Descent:
    return Descent(plan, plan, rounds, kl)


def test_where_nothing_slopes_the_plan_stays(make_asking):
    profile = make_asking()
    plan, _ = choose(profile, BUDGET, lengths=Lengths((N,)))
    again, _ = choose(profile, BUDGET, lengths=Lengths((N,)), descent=descent(profile, plan, around(profile, {})))
    assert np.array_equal(spans(again), spans(plan))


def test_the_next_plan_gives_what_the_slopes_ask_for_and_less_with_more_damping(make_asking):
    profile = make_asking()
    plan, _ = choose(profile, BUDGET, lengths=Lengths((N,)))
    layer, head = (int(i) for i in np.unravel_index(spans(plan).argmin(), spans(plan).shape))
    step = descent(profile, plan, around(profile, {(layer, head): 1.0}))
    moved = []
    for _ in range(8):
        after, _ = choose(profile, BUDGET, lengths=Lengths((N,)), descent=step)
        assert after.density(N) <= 0.5
        moved.append(int(np.abs(spans(after) - spans(plan)).sum()))
        if moved[-1]:
            assert spans(after)[layer, head] > spans(plan)[layer, head]
        step = step.damped
    assert moved[0] > 0
    assert moved[-1] < moved[0]


def test_slopes_count_by_their_mean_and_as_the_harm_of_the_start(make_asking):
    profile = make_asking()
    rules = grid((N,), profile.variants)
    plan, _ = choose(profile, BUDGET, lengths=Lengths((N,)))
    text, recall = parts(profile, rules, PLAIN, Lengths((N,)))
    one, two = (around(profile, {(0, 0): cost}) for cost in (1.0, 3.0))

    def slopes(*rounds: Profile) -> np.ndarray:
        """What `rounds` add to the objective, up to a constant of the group."""
        with_, without = (descent(profile, plan, *r, kl=0.5).objective(text, recall, rules, PLAIN)
                          for r in (rounds, (around(profile, {}),)))  # fmt: skip
        return (with_ - without) - (with_ - without)[:, :1]

    np.testing.assert_allclose(slopes(one, two), (slopes(one) + slopes(two)) / 2, atol=1e-12)
    harm_of_start = descent(profile, plan).merit(text, 0 * recall, rules, plan, 1.0)
    own = slope(one, rules, ("text", N)) * harm_of_start / 0.5
    np.testing.assert_allclose(slopes(one), own - own[:, :1], atol=1e-12)


def test_a_step_is_held_back_from_the_last_plan_not_the_first(make_asking):
    profile = make_asking()
    rules = grid((N,), profile.variants)
    start, last = (choose(profile, [parse("density", d)], lengths=Lengths((N,)))[0] for d in ("0.6", "0.3"))
    text, recall = parts(profile, rules, PLAIN, Lengths((N,)))
    total = Descent(start, last, (around(profile, {}),), 1.0).objective(text, 0 * recall, rules, PLAIN)
    numbers = list(rules.rules)
    stays = [numbers.index(rule) for layer in last.model.ruled_layers for rule in last.groups[layer]]
    assert np.allclose(total[np.arange(len(total)), stays], 0)
    assert (total > 0).mean() > 0.5


@pytest.mark.parametrize("more", [{}, {"keydiff": (64,)}, {"sinks": (64, 128), "keydiff": (128, 64)}])
def test_the_start_is_judged_by_its_objective(make_asking, more):
    profile = make_asking(**more)
    rules = grid((N,), profile.variants)
    plan, solution = choose(profile, BUDGET, lengths=Lengths((N,)))
    text, recall = parts(profile, rules, PLAIN, Lengths((N,)))
    assert recall.max() > 0
    if more:  # twins: rules of equal numbers and another pattern, of other harm
        assert len({rule.pattern for layer in plan.groups.values() for rule in layer}) == 2
    found = descent(profile, plan, kl=0.02)
    assert found.merit(text, recall, rules, plan, 0.02) == pytest.approx(solution.value)
    assert found.merit(text, recall, rules, plan, 0.01) < solution.value


def test_slopes_keep_their_sign(make_profile):
    profile = make_profile()
    rules = grid((N,), profile.variants)
    [cut, *_] = [c for c in profile.cuts if c[1] == N]
    signed = replace(profile, cuts={cut: -profile.cuts[cut]})
    assert harm(signed, rules, cut).max() == 0  # as harm, what a cut improves does not count
    assert slope(signed, rules, cut).min() < 0
    twice = 2 if profile.estimator(cut[0]) == "fisher" else 1
    assert slope(profile, rules, cut) * twice == pytest.approx(-slope(signed, rules, cut) * twice)


def test_what_is_read_has_no_slope_and_is_not_held_back(make_asking):
    profile, lengths = make_asking(shares=(64, 16)), Lengths((N,))
    rules = candidates(profile, PLAIN, lengths, reads=True)
    budgets = [parse("read", "0.2"), parse("density", "0.6")]
    plan, _ = choose(profile, budgets, lengths=lengths)
    harms = measured(profile, rules, lengths)
    text, recall = parts(profile, rules, PLAIN, lengths, harms)
    kept = parts(profile, rules, PLAIN, lengths, harms._replace(read={}))[0]
    steep = around(profile, {(0, 0): 2.0})
    step = descent(profile, plan, steep, kl=0.5)
    read = text - kept
    assert read.min() >= 0
    assert read.max() > 0
    found = step.objective(text, recall, rules, PLAIN, read)
    alone, now = step.objective(kept, 0 * recall, rules, PLAIN), _of(plan, text, rules).sum()
    slopes = slope(steep, rules, ("text", N)) * now / 0.5
    stays = kept - _of(plan, kept, rules)[:, None]
    wanted = recall + read + slopes + np.abs(stays)
    np.testing.assert_allclose(found, wanted - wanted.min(1, keepdims=True), atol=1e-9)
    assert not np.allclose(found, alone)
    after, solution = choose(profile, budgets, lengths=lengths, descent=step)
    assert after.read_density(N) <= 0.2
    assert solution.value == pytest.approx(_of(after, found, rules).sum())
