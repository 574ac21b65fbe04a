"""Random lives of a cache against the masked model over each whole text.

`make fuzz` runs the same test at 20 seeds, 2,000 lives.
"""

import copy
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from lives import Life

import moa
from moa.kernels.registry import BACKENDS

FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"]
READS = [spec.name for spec in BACKENDS if "read" in spec.can and spec.takes("cpu")]


EXTEND = st.tuples(
    st.just("extend"),
    st.one_of(st.just(1), st.integers(1, 64), st.integers(1, 250)),
    st.sampled_from(["none", "none", "left", "right", "some"]),
)
CROP = st.tuples(st.just("crop"), st.one_of(st.integers(0, 64), st.integers(0, 200)))
CHOOSE = st.tuples(st.just("choose"), st.sampled_from(["reorder", "repeat", "select"]), st.integers(0, 3))
COPY = st.tuples(st.just("copy"), st.integers(1, 20))


LIVES = {
    "family": st.sampled_from(FAMILIES),
    "seed": st.integers(0, 2**32 - 1),
    "batch": st.integers(1, 3),
    "fixed": st.booleans(),
    "first": st.integers(1, 400),
    "steps": st.lists(st.one_of(EXTEND, EXTEND, CROP, CHOOSE, COPY), max_size=7),
}


@settings(max_examples=100)
@given(backend=st.sampled_from(["reference", "torch", "numba"]), **LIVES)
def test_any_life_of_a_cache(
    tiny, random_plan, keydiff_plan, oracle, family, backend, seed, batch, fixed, first, steps
):  # fmt: skip
    plan = keydiff_plan if seed % 3 else random_plan
    live(tiny(family), plan, oracle, family, backend, seed, batch, fixed, first, steps)


@settings(max_examples=60)
@given(backend=st.sampled_from(READS), **LIVES)
def test_any_life_of_a_cache_that_reads_less_than_it_keeps(
    tiny, reading_plan, oracle, family, backend, seed, batch, fixed, first, steps
):  # fmt: skip
    live(tiny(family), reading_plan, oracle, family, backend, seed, batch, fixed, first, steps)


def live(model, make, oracle, family, backend, seed, batch, fixed, first, steps) -> None:
    """A life under a plan that `make` draws."""
    if (
        family == "Gemma3"
    ):  # transformers' sliding windows count padding, and forget: no crop, padding at the front alone
        allowed = ["reorder"] if fixed else ["reorder", "repeat", "select"]
        steps = [step for step in steps if step[1] in allowed or step[2:] == ("none",)]
    plan = make(model, seed % 1000)
    expected = partial(oracle, copy.deepcopy(model), plan)  # of a model that is under no plan
    with moa.apply(model, plan, backend):
        life = Life(model, plan, expected, batch, fixed, seed)
        life.extend(first, "left" if seed % 2 else "none")
        for kind, *details in steps:
            getattr(life, kind)(*details)
            life.check()
