"""Random lives of a cache against the masked model over each whole text.

`make fuzz` runs the same test at 20 seeds, 2,000 lives.
"""

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from feeding import positions_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import moa
from moa import KVCache, Plan, Unsupported
from moa.kernels.registry import BACKENDS
from moa.plans.reading import SHORT

FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"]
LIMIT = 700
READS = [spec.name for spec in BACKENDS if "read" in spec.can and spec.takes("cpu")]


class Life:
    """A batch of padded texts, the cache that holds them, and what the cache may be asked for."""

    def __init__(self, model, plan: Plan, oracle: Callable, batch: int, fixed: bool, seed: int) -> None:
        """A life of `model`, which is under the plan; `oracle` maps a text to its logits."""
        self.model, self.plan, self.oracle = model, plan, oracle
        self.cache = KVCache(plan, LIMIT if fixed else None)
        self.rng = np.random.default_rng(seed)
        self.ids = torch.zeros(batch, 0, dtype=torch.int64)
        self.real = torch.zeros(batch, 0, dtype=torch.bool)
        self.reads = torch.zeros(batch, 0, dtype=torch.bool)  # fed in a call with few tokens of its sequence
        self.top = 0  # the most columns since the last crop but those it took

    def extend(self, new: int, padding: str) -> None:
        """A forward call with `new` columns, compared row by row."""
        new = min(new, LIMIT - self.ids.shape[1])
        if not new:
            return
        batch = len(self.ids)
        columns, pads = np.arange(new), self.rng.integers(0, new + 1, batch)[:, None]
        fresh = {
            "none": np.ones((batch, new), bool),
            "left": columns >= pads,
            "right": columns < pads,
            "some": self.rng.random((batch, new)) < 0.7,
        }[padding]
        self.real = torch.cat([self.real, torch.from_numpy(fresh)], 1)
        short = fresh.sum(1, keepdims=True) <= SHORT
        self.reads = torch.cat([self.reads, torch.from_numpy(short).expand(-1, new)], 1)
        self.ids = torch.cat([self.ids, torch.from_numpy(self.rng.integers(1, 61, (batch, new)))], 1)
        positions = positions_of(self.real.long())
        mask = None if self.real.all() else self.real.long()
        with torch.no_grad():
            found = self.model(
                self.ids[:, -new:],
                attention_mask=mask,
                position_ids=positions[:, -new:],
                past_key_values=self.cache,
            ).logits
        self.top = max(self.top, self.ids.shape[1])
        self.compare(found)

    def compare(self, found: Tensor) -> None:
        new = found.shape[1]
        for ids, real, reads, logits in zip(self.ids, self.real, self.reads, found, strict=True):
            count = int(real[-new:].sum())
            if count:
                expected = self.oracle(ids[real], reads[real].numpy())[-count:]
                torch.testing.assert_close(logits[real[-new:]], expected, rtol=0, atol=1e-10)

    def crop(self, columns: int) -> None:
        width = self.ids.shape[1]
        columns = min(columns, width)
        try:
            self.cache.crop(-columns)
        except Unsupported:
            assert self.top - (width - columns) > 64  # up to a block back from the farthest is always legal
            assert int(self.cache.get_seq_length()) == width
            return
        self.keep(lambda x: x[:, : width - columns])

    def choose(self, kind: str, order: int) -> None:
        """Reorder, repeat or select sequences."""
        batch = len(self.ids)
        if kind == "repeat" and batch <= 2:
            rows = torch.arange(batch).repeat_interleave(2)
            self.cache.batch_repeat_interleave(2)
        elif kind == "select":
            rows = torch.arange(batch)[order % batch :]
            self.cache.batch_select_indices(rows)
        else:
            rows = torch.from_numpy(self.rng.integers(0, batch, batch))
            self.cache.reorder_cache(rows)
        self.keep(lambda x: x[rows])

    def keep(self, part: Callable) -> None:
        self.ids, self.real, self.reads = part(self.ids), part(self.real), part(self.reads)

    def check(self) -> None:
        """What must hold at any time."""
        lengths = self.real.sum(1).tolist()
        assert int(self.cache.get_seq_length()) == self.ids.shape[1]
        if self.cache.lengths is not None:
            assert self.cache.lengths.tolist() == lengths


EXTEND = st.tuples(
    st.just("extend"),
    st.one_of(st.just(1), st.integers(1, 64), st.integers(1, 250)),
    st.sampled_from(["none", "none", "left", "right", "some"]),
)
CROP = st.tuples(st.just("crop"), st.one_of(st.integers(0, 64), st.integers(0, 200)))
CHOOSE = st.tuples(st.just("choose"), st.sampled_from(["reorder", "repeat", "select"]), st.integers(0, 3))


LIVES = {
    "family": st.sampled_from(FAMILIES),
    "seed": st.integers(0, 2**32 - 1),
    "batch": st.integers(1, 3),
    "fixed": st.booleans(),
    "first": st.integers(1, 400),
    "steps": st.lists(st.one_of(EXTEND, EXTEND, CROP, CHOOSE), max_size=7),
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
