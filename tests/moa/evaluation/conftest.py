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


@pytest.fixture
def two_samples(tokenizer):
    """Draw two samples of a task, which lack less than `part` of their length; the seed alone decides which."""

    def draw(task, length, part):
        first, second = task.samples(tokenizer, length, 2, 0)
        assert [first, second] == task.samples(tokenizer, length, 2, 0)
        assert first != second
        assert first != task.samples(tokenizer, length, 1, 1)[0]
        for prompt in (first, second):
            assert length - part < len(prompt.ids) + task.new_tokens <= length  # bytes are tokens here
        return first, second

    return draw
