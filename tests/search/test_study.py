"""The study, against a made-up model that knows which layers matter."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from optuna.pruners import NopPruner
from optuna.trial import FixedTrial, TrialState

from moa.plans.errors import BudgetInfeasible, MoaError
from moa.plans.plan import Plan
from moa.search.budget import parse
from moa.search.calibrate import Scale, fit
from moa.search.choose import choose
from moa.search.lengths import Lengths
from moa.search.objective import Mix
from moa.search.storage import open_storage
from moa.search.study import Measured, measure, mix_of, open_study, study, tpe

N = 1024


def solve(profile, mix: Mix) -> Plan:
    return choose(profile, [parse("density", "0.5")], mix=mix, lengths=Lengths((N,)))[0]


class Truth:
    """Only what the first layer hides does harm; counts its calls."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, plan: Plan) -> Iterator[Measured]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        hidden = 1 - plan.spans(N)[0].mean() / N
        for part in (1.1, 1.0):
            yield Measured(kl=hidden * part, recall=hidden * part / 2, right=1 - hidden)


def test_it_finds_what_the_sum_of_harms_does_not_know(make_profile):
    profile, bests = make_profile(layers=4), []
    best = study(profile, partial(solve, profile), Truth(), trials=12, lengths=[N], name="a", found=bests.append)
    assert best.measured.score(best.base) < 0.9
    assert best.plan == solve(profile, best.mix)
    *_, again = Truth()(best.plan)
    assert again == best.measured
    scores = [b.measured.score(b.base) for b in bests]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 1  # the single exact solve comes first
    assert sum(best.trials) == 12


def test_the_plain_mix_is_never_beaten_by_a_worse_one(make_profile):
    def other(plan: Plan) -> Iterator[Measured]:
        yield Measured(kl=1.0, recall=1.0, right=0.0)  # all plans are equal

    profile = make_profile()
    best = study(profile, partial(solve, profile), other, trials=4, lengths=[N], name="a")
    assert best.mix == Mix()
    assert best.measured.score(best.base) == 1


@pytest.mark.parametrize("plain", [Mix(), Mix(power=0.7), Mix(sinks=(64,))])
def test_the_plain_mix_is_a_trial_that_the_sampler_knows(make_profile, tmp_path, plain):
    profile, journal = make_profile(sinks=(64, 128)), str(tmp_path / "trials.log")
    study(profile, partial(solve, profile), Truth(), trials=2, lengths=[N], name="a", plain=plain, storage=journal)
    first, second = open_study("a", journal).trials
    assert first.params.keys() == second.params.keys()
    assert solve(profile, mix_of(FixedTrial(first.params), profile, [N])) == solve(profile, plain)


def test_a_plain_mix_outside_of_what_a_study_tries(make_profile):
    profile = make_profile()
    outside = Mix(lengths={N: 0.0, 2 * N: 1.0})
    best = study(profile, lambda _mix: solve(profile, Mix()), Truth(), trials=3, lengths=[N], name="a", plain=outside)
    assert best.mix == outside


def test_killed_it_goes_on_with_nothing_lost(make_profile, tmp_path):
    profile, journal = make_profile(layers=4), str(tmp_path / "trials.log")
    whole = study(profile, partial(solve, profile), Truth(), trials=8, lengths=[N], name="a", seed=5)
    with pytest.raises(KeyboardInterrupt):
        study(
            profile, partial(solve, profile), Truth(fail_at=4), trials=8, lengths=[N], name="a", storage=journal, seed=5
        )
    rest = Truth()
    best = study(profile, partial(solve, profile), rest, trials=8, lengths=[N], name="a", storage=journal, seed=5)
    assert sum(best.trials) == sum(whole.trials) == 8
    assert rest.calls <= 5  # the base and two trials are not measured again
    finished = Truth()
    assert (
        study(profile, partial(solve, profile), finished, trials=8, lengths=[N], name="a", storage=journal, seed=5)
        == best
    )
    assert finished.calls == 0


def test_figures_of_another_plan_are_refused(make_profile, tmp_path):
    profile, journal = make_profile(), str(tmp_path / "trials.log")
    study(profile, partial(solve, profile), Truth(), trials=2, lengths=[N], name="a", storage=journal)

    def wider(mix):
        return choose(profile, [parse("density", "0.9")], mix=mix, lengths=Lengths((N,)))[0]

    with pytest.raises(MoaError, match="measured another plan than its mix gives here"):
        study(profile, wider, Truth(), trials=2, lengths=[N], name="a", storage=journal)


def test_a_mix_is_solved_once_as_time_limits_may_not_give_the_same_plan_again(make_profile):
    profile, mixes = make_profile(), []

    def counted(mix):
        mixes.append(repr(mix))
        return solve(profile, mix)

    study(profile, counted, Truth(), trials=4, lengths=[N], name="a")
    assert len(mixes) == len(set(mixes)) == 4


@pytest.mark.parametrize("content", [b"to do: buy milk\n", b'{"name": 1}\n', b"[]\n", b"\xff\x00" * 9])
def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(MoaError, match=r"notes\.txt, line 1: not a journal of trials"):
        open_storage(str(path))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "url", ["nosuch://x", "sqlite:////no/such/folder/x.db", "postgresql://localhost:1/x", "redis://x", "/no/such/x.log"]
)
def test_a_storage_that_cannot_be_opened_is_one_line(url):
    with pytest.raises(MoaError, match=f"cannot open --storage {url}: [^\n]+$"):
        open_storage(url)


def test_every_trial_draws_from_a_seed_of_its_own(make_profile, tmp_path):
    profile, journal, seeds = make_profile(), str(tmp_path / "trials.log"), []

    def sampler(seed):
        seeds.append(seed)
        return tpe(seed)

    for trials in (3, 5):  # the second run goes on
        study(
            profile, partial(solve, profile), Truth(), trials=trials, lengths=[N], name="a", storage=journal,
            sampler=sampler,
        )  # fmt: skip
    assert len(set(seeds)) == len(seeds) == 4  # the first trial is the plain mix


def test_equal_seeds_give_equal_studies(make_profile):
    profile = make_profile(layers=4)
    one, two = (
        study(profile, partial(solve, profile), Truth(), trials=8, lengths=[N], name="a", seed=3) for _ in range(2)
    )
    assert one == two


def test_sinks_are_chosen_and_infeasible_ones_are_survived(make_profile):
    profile = make_profile(sinks=(64, 512))

    def narrow(mix):
        return choose(profile, [parse("density", "0.45")], mix=mix, lengths=Lengths((N,)))[0]

    best = study(profile, narrow, Truth(), trials=8, lengths=[N], name="a")
    assert best.plan.density(N) <= 0.45
    assert {rule.sink for rules in best.plan.groups.values() for rule in rules} == {64}


def test_every_size_of_sinks_is_tried_of_either_kind(make_profile):
    for sinks, keydiff in (((64,), (64, 128)), ((), (64, 128)), ((64, 128), (64,))):
        profile = make_profile(sinks=sinks, keydiff=keydiff)
        trial = open_study("a", None).ask()
        mix_of(trial, profile, [N])
        assert set(trial.distributions["sink"].choices) == {"all", 64, 128}


def test_no_plan_at_all(make_profile):
    profile = make_profile()

    def none(mix):
        return choose(profile, [parse("density", "0.01")], mix=mix)[0]

    with pytest.raises(BudgetInfeasible, match="smallest feasible"):
        study(profile, none, Truth(), trials=2, lengths=[N], name="a")


def test_a_scale_gives_back_the_law_it_was_made_from():
    scale = fit([(x, 0.3 * x**1.5) for x in (0.1, 0.5, 2.0)] + [(0.0, 0.0)])
    assert np.allclose([scale.factor, scale.power, scale.error], [0.3, 1.5, 0])
    assert scale.objective(scale.nats(0.7)) == pytest.approx(0.7)


def test_an_infeasible_harm_is_said_in_nats():
    scale = Scale(factor=2.0, power=1.0, error=0.0)
    message = "no plan keeps density<=0.4 and harm<=0.05 together; smallest: 0.5 for density<=0.4, 0.3 for harm<=0.05"
    assert scale.reword(message, "harm<=0.05", "harm<=0.1 nats") == (
        "no plan keeps density<=0.4 and harm<=0.1 nats together; smallest: 0.5 for density<=0.4, 0.6003 for "
        "harm<=0.1 nats"
    )


@pytest.mark.parametrize(
    ("points", "says"),
    [([(1.0, 0.1)], "two plans"), ([(1.0, 0.1), (1.0, 0.2)], "two plans"), ([(1.0, 0.2), (2.0, 0.1)], "does not grow")],
)
def test_a_scale_that_cannot_be_fitted(points, says):
    with pytest.raises(MoaError, match=says):
        fit(points)


def test_the_score_is_the_mean_of_both_divergences_as_shares_of_the_bases():
    base = Measured(kl=0.5, recall=4.0, right=0.5)
    assert base.score(base) == 1
    assert Measured(kl=0.25, recall=8.0, right=0.1).score(base) == (0.5 + 2.0) / 2
    assert Measured(kl=0.0, recall=1.0, right=1.0).score(base) == 0.25 / 2
    assert Measured(kl=1.0, recall=0.0, right=0.0).score(base) == 2.0 / 2
    dense = Measured(kl=0.0, recall=0.0, right=1.0)
    assert dense.score(dense) == 0
    assert Measured(kl=1e-3, recall=0.0, right=1.0).score(dense) > 1e5


@pytest.mark.parametrize("kind", ["kl", "recall"])
def test_the_best_is_the_least_of_either_divergence_alone(make_profile, kind):
    """One divergence is what the first layer hides, the other is the same for all plans."""

    def truth(plan: Plan) -> Iterator[Measured]:
        hidden = 1 - plan.spans(N)[0].mean() / N
        yield Measured(**{"kl": 1.0, "recall": 1.0, kind: hidden}, right=0.5)

    profile = make_profile(layers=4)
    best = study(profile, partial(solve, profile), truth, trials=12, lengths=[N], name="a")
    assert getattr(best.measured, kind) < 0.9 * getattr(best.base, kind)


def measured_parts(make_profile, trials=20, **more):
    """A study whose measurements come in four parts that say the same; how many were asked for, by plan."""
    asked: list[int] = []

    def truth(plan: Plan) -> Iterator[Measured]:
        hidden = 1 - plan.spans(N)[0].mean() / N
        asked.append(0)
        for _ in range(4):
            asked[-1] += 1
            yield Measured(kl=hidden, recall=hidden**2, right=0.5)

    profile = make_profile(layers=4)
    best = study(profile, partial(solve, profile), truth, trials=trials, lengths=[N], name="a", **more)
    return best, asked


def test_trials_behind_the_median_are_stopped_at_once_and_others_measured_to_the_end(make_profile, tmp_path):
    journal = str(tmp_path / "trials.log")
    best, asked = measured_parts(make_profile, storage=journal)
    assert set(asked) == {1, 4}  # what is behind shows at the first part
    finished = open_study("a", journal).trials
    behind = [trial for trial in finished if trial.state == TrialState.PRUNED]
    assert best.trials == (len(finished) - len(behind), len(behind))
    assert asked.count(1) == len(behind) > 0
    for trial in behind:
        complete = [t for t in finished[: trial.number] if t.state == TrialState.COMPLETE]
        assert len(complete) >= 4  # nothing is stopped before there is a median
        before = [t.value for t in complete if t.intermediate_values]
        assert trial.intermediate_values[0] > np.median(before)
    every, whole = measured_parts(make_profile, pruner=NopPruner())
    assert set(whole) == {4}
    assert every.trials == (20, 0)


def test_what_a_trial_reports_is_its_score(make_profile, tmp_path):
    journal = str(tmp_path / "trials.log")
    best, _ = measured_parts(make_profile, trials=6, storage=journal)
    for trial in open_study("a", journal).trials[1:]:
        if trial.intermediate_values and trial.state == TrialState.COMPLETE:
            assert sorted(trial.intermediate_values) == [0, 1, 2, 3]
            score = Measured(**trial.user_attrs["measured"]).score(best.base)
            assert list(trial.intermediate_values.values()) == pytest.approx([score] * 4)
            assert trial.value == pytest.approx(score)


def test_no_trial_is_stopped_before_four_are_measured():
    shared, base = open_study("a", None), Measured(kl=1.0, recall=1.0, right=0.5)

    def trial(share: float) -> TrialState:
        def twice(_plan: Plan) -> Iterator[Measured]:
            for _ in range(2):
                yield Measured(kl=share, recall=share, right=0.5)

        measure(shared, shared.ask(), None, twice, base)
        return shared.trials[-1].state

    assert [trial(share) for share in (1.0, 2.0, 3.0, 4.0)] == [TrialState.COMPLETE] * 4
    assert [trial(share) for share in (5.0, 0.5, 2.9)] == [TrialState.PRUNED, TrialState.COMPLETE, TrialState.PRUNED]
