"""Rounds of a search, against a made-up model: which steps are kept."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.descent import TRIES, _of
from moa.search.grid import grid
from moa.search.lengths import Lengths
from moa.search.objective import PLAIN, parts
from moa.search.question import Question
from moa.search.rounds import descend
from moa.search.study import Best, Measured, study

N = 1024


class Check:
    """Measures scripted divergences, one after the other; the last again and again."""

    length = N

    def __init__(self, kls: Sequence[float]) -> None:
        self.kls, self.plans = list(kls), []

    def __call__(self, plan: Plan) -> Iterator[Measured]:
        self.plans.append(plan)
        kl = self.kls.pop(0) if len(self.kls) > 1 else self.kls[0]
        yield Measured(kl=kl, recall=1.0, right=0.5)


@pytest.fixture
def profile() -> Profile:
    info = ModelInfo(
        architecture="LlamaForCausalLM", layers=4, query_heads=4, kv_heads=2, head_size=64,
        rope={"theta": 1e4, "type": "default"},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    table = np.tril(rng.exponential(1.0, (1, 4, 2, N // 64, N // 64))).astype(np.float32)
    table[..., 0] = 0
    counts = {("text", N): 10}
    return Profile(info, (("sink_window", 64),), {("text", N): table}, counts, counts, {"seed": 3}, {"text": "fisher"})


@pytest.fixture
def rounds(profile: Profile):
    """Runs rounds whose slopes ask for the groups that the profile says least of; gives the check and what was kept."""
    slopes = replace(profile, cuts={c: t.max() - t for c, t in profile.cuts.items()}, estimators={"text": "effect"})

    def run(number: int, *kls: float) -> tuple[Check, list[tuple[Best, int]]]:
        check, kept = Check(kls), []
        question = Question.of(profile, {"density": 0.5}, "0", lengths=[N])
        start = study(profile, lambda mix: question.solve(mix)[0], check, trials=1, lengths=(N,), name="rounds")
        kept.append((start, 0))
        best = descend(
            question, start, check, lambda *_: slopes, number, found=lambda *each: kept.append(each), note=str
        )
        assert best is kept[-1][0]
        return check, kept

    return run


def test_a_better_step_is_kept(rounds):
    check, [_, (best, number)] = rounds(1, 1.0, 0.1)
    assert len(check.plans) == 2
    assert best.plan.groups == check.plans[1].groups != check.plans[0].groups
    assert number == 1


def test_a_worse_step_is_tried_again_with_more_damping_and_is_not_kept(rounds, profile):
    check, [(start, _)] = rounds(2, 1.0, 1e3)
    assert 1 < len(check.plans) <= 1 + 2 * TRIES
    assert start.plan.groups == check.plans[0].groups
    rules = grid((N,), [("sink_window", 64)])
    text, _ = parts(profile, rules, PLAIN, Lengths((N,)))
    harms = [_of(p, text, rules) for p in check.plans[: 1 + TRIES]]
    change = [float(np.abs(h - harms[0]).sum()) for h in harms[1:]]
    assert all(after <= before * 1.001 for before, after in pairwise(change))
    assert change[-1] < change[0]


def test_the_second_try_may_be_the_better_one(rounds):
    check, [_, (best, _)] = rounds(1, 1.0, 1e3, 0.1)
    assert len(check.plans) == 3
    assert best.plan.groups == check.plans[2].groups
