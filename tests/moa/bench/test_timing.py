"""Every call is timed, the variants in turn; what counts as the peak of memory."""

import platform
import sys

import pytest
import torch

from moa.bench.timing import Times, alternate, decode, disagreement, peak_bytes, prefill, reset_peak
from moa.runtime.variant import Variant


@pytest.fixture
def model(tiny):
    return tiny(dtype=torch.float32)


def variants(plan):
    return {
        "dense, growing": Variant(),
        "dense, fixed": Variant(fixed=True),
        "plan, growing": Variant(plan),
        "plan, fixed": Variant(plan, fixed=True),
    }


@pytest.mark.parametrize("name", variants(None))
def test_every_step_is_timed(model, random_plan, tokens, name):
    variant = variants(random_plan(model, 3))[name]
    before = model.config._attn_implementation
    calls = {
        "prefill": lambda: prefill(model, variant, tokens(1, 70)),
        "decode": lambda: decode(model, variant, 130, 2, steps=3),
    }
    found = alternate(calls, rounds=2)
    assert {name: len(times.seconds) for name, times in found.items()} == {"prefill": 2, "decode": 6}
    assert all(second > 0 for times in found.values() for second in times.seconds)
    assert model.config._attn_implementation == before


def test_calls_alternate():
    order = []
    alternate({name: lambda name=name: order.append(name) or [1.0] for name in "ab"}, rounds=2)
    assert order == list("abab")


def test_median_and_quartiles():
    times = Times((1.0, 2.0, 3.0, 4.0, 5.0))
    assert (times.median, times.iqr) == (3.0, 2 / 3)
    assert Times((2.0,)).iqr == 0


def test_peak_memory_since_the_last_reset():
    cpu, size = torch.device("cpu"), 256 << 20
    reset_peak(cpu)
    before = peak_bytes(cpu)
    torch.ones(size // 4)
    assert peak_bytes(cpu) > before + size // 2
    if sys.platform == "linux":
        reset_peak(cpu)
        assert peak_bytes(cpu) < before + size // 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to give back what it keeps")
def test_freed_memory_between_what_is_held_does_not_count():
    cpu = torch.device("cpu")
    small = [torch.ones(10_000) for _ in range(10_000)]  # 400 MB, each too small for a mapping of its own
    held = peak_bytes(cpu)
    kept = small[::100]
    del small
    reset_peak(cpu)
    assert peak_bytes(cpu) < held - (200 << 20)
    assert len(kept) == 100


def test_disagreement_sees_a_wrong_variant(fresh, random_plan, tokens):
    model = fresh(dtype=torch.float32)
    plan = random_plan(model, 1)
    assert disagreement(model, Variant(plan, fixed=True), tokens(1, 300)) < 1e-3

    class Other(Variant):
        def on(self, model):
            return Variant(random_plan(model, 2)).on(model)

        def cache(self, model, room):
            return Variant(random_plan(model, 2)).cache(model, room)

    assert disagreement(model, Other(plan), tokens(1, 300)) > 1e-3
