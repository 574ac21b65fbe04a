import numpy as np
import pytest

from moa.plans.errors import MoaError
from moa.plans.patterns import KeyDiffWindow
from moa.plans.plan import Plan, Rule
from moa.search.cost import Work
from moa.search.fit import LEAST, in_turn, measure, probes
from moa.search.spread import SURE, standard_error

WORKS = [Work("decode", n, batch) for n in (512, 2048) for batch in (1, 4)] + [Work("prefill", n) for n in (512, 2048)]


def test_terms_are_found_again(info, known):
    calls, seen = [], []

    def run(plan, work):
        calls.append((plan, work))
        return [known.predict(plan, work)] * 2

    found = measure(info, WORKS, run, environment=known.environment, rounds=6, progress=lambda *x: seen.append(x))
    assert len(calls) == LEAST * len(WORKS) * len(probes(info, 2048)) == len(seen)  # no spread: no more are needed
    assert seen[-1][0] == seen[-1][1]
    assert found.environment == known.environment
    for kind, terms in known.terms.items():
        assert found.terms[kind] == pytest.approx(terms, rel=1e-4)
        assert found.error[kind] < 1e-6
    assert all(row.predicted == pytest.approx(row.ms, rel=1e-3) for row in found.measured)
    assert {(row.iqr, row.standard_error, row.is_sure) for row in found.measured} == {(0.0, 0.0, True)}


def test_reads_are_measured_where_asked_for_in_decode_steps_alone(info, known, reading):
    ran = []

    def run(plan, work):
        ran.append((work.kind, plan.reads()))
        return [reading.predict(plan, work)]

    found = measure(info, WORKS, run, environment={}, reads=True)
    assert found.know_reads
    assert {kind for kind, reads in ran if reads} == {"decode"}
    for kind, terms in reading.terms.items():
        assert found.terms[kind] == pytest.approx(terms, rel=1e-4)
    ran.clear()
    plain = measure(info, WORKS, run, environment={})
    assert not any(reads for _, reads in ran)
    assert not plain.know_reads
    assert set(plain.terms["decode"]) == set(known.terms["decode"])


def test_noise_is_averaged_and_reported(info, known):
    rng = np.random.default_rng(0)
    noisy = measure(
        info, WORKS, lambda plan, work: known.predict(plan, work) * rng.lognormal(0, 0.05, 5), environment={}, rounds=3,
    )  # fmt: skip
    assert all(ms >= 0 for terms in noisy.terms.values() for ms in terms.values())
    kinds = Plan.uniform(info, 0.3, at=1024), Plan.from_rules(info, {}, defaults=KeyDiffWindow(alpha=384, beta=0))
    for kind in known.terms:
        assert 0 < noisy.error[kind] < 0.05
        for work in (Work(kind, 1024), Work(kind, 1536)):
            for plan in kinds:
                assert noisy.predict(plan, work) == pytest.approx(known.predict(plan, work), rel=0.1)
    assert all(0 < row.iqr < 0.3 for row in noisy.measured)
    assert not any(row.is_sure for row in noisy.measured)  # three rounds say little of a standard error


def test_no_two_groups_of_a_probe_share_a_call_and_every_pattern_is_there(info):
    found = probes(info, 4096)
    for name in ("wide", "narrow", "keydiff wide", "keydiff narrow"):
        for layer in info.ruled_layers:
            assert len(set(found[name].groups[layer])) == info.kv_heads
            assert set(found[name].holds(layer)) == {"keydiff" if name.startswith("keydiff") else "first"}
    assert len({found["mixed"].holds(layer).count("keydiff") for layer in info.ruled_layers}) > 1


def test_growth_with_the_length_needs_two_lengths(info):
    with pytest.raises(MoaError, match="decode must be measured at two lengths"):
        measure(info, [Work("decode", 512)], lambda *_: [1.0], environment={})


def test_rounds_end_cell_by_cell_and_begin_with_another_plan(info):
    plans = {name: Plan.from_rules(info, {}, defaults=Rule(alpha=a, beta=0)) for name, a in (("a", 128), ("b", 192))}
    steady, wild = Work("decode", 512), Work("decode", 1024)
    calls, rng = [], np.random.default_rng(0)
    names = {plan.fingerprint(): name for name, plan in plans.items()}

    def run(plan, work):
        calls.append((names[plan.fingerprint()], work))
        return [float(rng.lognormal(0, 1))] if calls[-1] == ("b", wild) else [1.0]

    taken = in_turn({steady: plans, wild: plans}, run, lambda work: 9)
    assert {key: len(ms) for key, ms in taken.items()} == {
        (name, work): count for work, count in ((steady, LEAST), (wild, 9)) for name in "ab"
    }
    assert calls[:8] == [(name, work) for names in ("ab", "ba") for work in (steady, wild) for name in names]
    assert standard_error(taken["b", wild]) > SURE  # one unsure median keeps its whole cell going


def test_the_standard_error_is_that_of_the_median():
    rng = np.random.default_rng(0)
    for count in (10, 30):
        drawn = rng.normal(1, 0.05, (2000, count))
        estimated = np.mean([standard_error(row.tolist()) for row in drawn])
        assert estimated == pytest.approx(np.median(drawn, 1).std(), rel=0.25)
        assert estimated > np.median(drawn, 1).std()  # of a few, on the safe side
    assert standard_error([1.0]) == float("inf")
