"""A small model and a plan for it, for tests of the comparison and of its tasks."""

import pytest
import torch

from moa.plans.plan import Plan, Rule


@pytest.fixture(scope="module")
def model(fresh, tokenizer):
    return fresh(vocab_size=len(tokenizer), dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(model):
    return Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0.0))
