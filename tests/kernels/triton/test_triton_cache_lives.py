"""Random lives of caches under plans that read: back-end `triton` attends to what the reference attends to.

The model has one layer, so caches of both hold the same numbers to the last bit, and only the attention rounds.
"""

import math
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from lives import Life
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import moa
from moa.kernels.paged import selection
from moa.plans.patterns import FULL, KeyDiffWindow, Rule
from moa.plans.plan import Plan

LIMIT = 300
SIZE = 16
ROUNDING = torch.finfo(torch.float32).eps / 2
READS = (
    Rule(alpha=0, beta=1, read=5 / 16),
    Rule(sink=128, alpha=0, beta=0.75, read=7 / 32),
    KeyDiffWindow(alpha=128, beta=0, read=5 / 8),
)
"""At the lengths of these lives they choose, some of them coarse pages too."""


@cache
def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=64, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=SIZE, max_position_embeddings=2048, initializer_range=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@cache
def largest() -> tuple[float, float]:
    """The greatest |q| |k| * scale, which no rotation changes, and the greatest value, of all tokens."""
    layer = model().model.layers[0]
    with torch.no_grad():
        x = layer.input_layernorm(model().model.embed_tokens.weight)
        own = layer.self_attn
        q, k, v = (each(x).view(len(x), -1, SIZE) for each in (own.q_proj, own.k_proj, own.v_proj))
        return float(q.norm(dim=-1).max() * k.norm(dim=-1).max() * own.scaling), float(v.abs().max())


def tolerance() -> float:
    """Bound on how far two back-ends are apart: twice that of `rounding` in `tests/kernels/conftest.py`."""
    score, value = largest()
    return 2 * value * (math.expm1(2 * (SIZE + 4) * ROUNDING * score) + 2 * (LIMIT + 2) * ROUNDING)


def near() -> float:
    """Bound on the relative difference of two pages' weights that rounding may turn round.

    A page's score is the product of half of the channels, and half of a spread times |q|. Neither is greater than the
    greatest score of a key, but for the rounding of means to 4 bits, at most a seventh of them.
    """
    score = 2 * largest()[0]
    return 4 * math.expm1(2 * (SIZE // 2 + 4) * ROUNDING * score) + 4 * LIMIT * ROUNDING


class Recorded(Life):
    """A life that keeps what its attention gave in every call, and how near its choices were."""

    def __init__(self, plan: Plan, batch: int, fixed: bool, seed: int) -> None:
        super().__init__(model(), plan, lambda *text: torch.empty(0), batch, fixed, seed, LIMIT)
        self.attended: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.margins: list[float] = []
        self.nearest: list[float] = []

    def compare(self, found: Tensor) -> None:
        self.outputs.append(self.attended.pop()[self.real[:, -found.shape[1] :]])
        self.nearest.append(min(self.margins, default=1.0))
        self.margins.clear()

    def best(self, scores: Tensor, count: int) -> Tensor:
        """Choose as the reference does, and note by how much, unless pages are equal."""
        weight = scores.double().softmax(-1).sum(0).sort(descending=True).values
        if count < len(weight) and weight[count] < weight[count - 1]:
            self.margins.append(1 - float(weight[count] / weight[count - 1]))
        return BEST(scores, count)


BEST = selection.best


def live(backend: str, plan: Plan, batch: int, fixed: bool, seed: int, first: int, steps: Any) -> Recorded:
    life = Recorded(plan, batch, fixed, seed)
    hook = (
        model()
        .model.layers[0]
        .self_attn.o_proj.register_forward_pre_hook(lambda module, inputs: life.attended.append(inputs[0]))
    )
    with hook, patch.object(selection, "best", life.best), moa.apply(model(), plan, backend):
        life.extend(first, "left" if seed % 2 else "none")
        for kind, *details in steps:
            getattr(life, kind)(*details)
            life.check()
    return life


STEPS = st.one_of(
    st.tuples(
        st.just("extend"),
        st.sampled_from([1, 1, 2, 5, 16, 17]),
        st.sampled_from(["none", "none", "left", "right", "some"]),
    ),
    st.tuples(st.just("crop"), st.integers(1, 64)),
    st.tuples(st.just("choose"), st.sampled_from(["reorder", "repeat", "select"]), st.integers(0, 3)),
    st.tuples(st.just("copy"), st.integers(1, 3)),
)


@pytest.mark.parametrize("rule", READS, ids=lambda rule: f"{rule.pattern} {rule.read}")
def test_the_rules_choose(rule: Rule) -> None:
    """By more than rounding, nearly always."""
    steps = [("extend", new, "none") for new in (16, 3, 16, 1, 16)]
    nearest = live("reference", Plan.from_rules(model(), {0: [rule, rule]}), 2, False, 0, 200, steps).nearest
    assert nearest[0] == 1
    assert sum(near() < margin < 1 for margin in nearest[1:]) > 2


@settings(max_examples=3)
@given(
    rules=st.tuples(st.sampled_from(READS), st.sampled_from((*READS, FULL))),
    batch=st.integers(1, 2),
    fixed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(140, 220),
    steps=st.lists(STEPS, min_size=2, max_size=4),
)
def test_any_life_of_a_cache_that_reads(
    rules: tuple[Rule, Rule], batch: int, fixed: bool, seed: int, first: int, steps: Any
) -> None:  # fmt: skip
    plan, steps = Plan.from_rules(model(), {0: rules}), [*steps, ("extend", 1, "none")]
    mine, reference = (live(name, plan, batch, fixed, seed, first, steps) for name in ("triton", "reference"))
    for found, wanted, margin in zip(mine.outputs, reference.outputs, reference.nearest, strict=True):
        event(f"compared: {margin > near()}")
        if margin > near():
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance())
