"""Plans that read less than they keep are refused in one line, wherever they would run."""

import pytest

import moa
from moa import KVCache, Plan, Unsupported
from moa.plans.patterns import Rule


@pytest.fixture
def reading(model):
    return Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1, read=1 / 8))


def test_apply_and_caches(model, reading):
    for use in (lambda: moa.apply(model, reading), lambda: KVCache(reading), lambda: KVCache(reading, max_length=64)):
        with pytest.raises(Unsupported, match=r"^read 0.125 in the rule of layer 0, KV head 0: .* not run yet$"):
            use()


def test_a_comparison_refuses_before_it_measures(model, reading):
    with pytest.raises(Unsupported, match="not run yet"):
        moa.evaluate_plans((model, None), {"reading": reading}, lengths=(256,))
