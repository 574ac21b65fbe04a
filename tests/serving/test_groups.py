"""KV-cache groups of the vLLM plugin: what each keeps, how heads are sorted, who has which on which rank."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.patterns import Rule, reach
from moa.plans.plan import FULL, Plan
from moa.plans.span import BLOCK
from moa_vllm.groups import NEAR, kept, on_ranks, sort

RULES = st.builds(
    lambda pattern, sink, alpha, beta: Rule(pattern=pattern, sink=64 * sink, alpha=alpha, beta=beta / 256),
    st.sampled_from(["sink_window", "keydiff_window"]), st.integers(1, 4), st.integers(-300, 900), st.integers(0, 256),
)  # fmt: skip


def model(layers: int, kv_heads: int) -> ModelInfo:
    return ModelInfo(
        architecture="LlamaForCausalLM", layers=layers, query_heads=2 * kv_heads, kv_heads=kv_heads, head_size=64,
        rope={"theta": 10000.0},
    )  # fmt: skip


@functools.cache
def shipped() -> Plan:
    return Plan.load("smollm2-135m-instruct-0.25")


@given(rules=st.lists(RULES, min_size=1, max_size=4, unique=True), block=st.integers(0, 60))
def test_a_group_keeps_what_any_of_its_rules_wants(rules, block):
    found = kept(tuple(rules))
    wanted = set()
    for rule in rules:
        own = reach([rule])
        wanted |= set(range(min(rule.sink // BLOCK, block + 1)))
        wanted |= set(range(max(int(own.first(block)[0]), 0), block + 1))
    have = set(range(min(found.sink, block + 1))) | set(range(int(found.first(block)), block + 1))
    assert wanted <= have
    assert len(have) == block + 1 - int(found.gap(block))


@given(
    rules=st.lists(RULES, min_size=1, max_size=3, unique=True), tokens=st.integers(1, 4000), chunk=st.integers(1, 999)
)
def test_most_blocks_hold_every_step_of_a_prefill(rules, tokens, chunk):
    """Also where chunks begin anywhere: blocks are freed by what is computed, and taken for what is in flight."""
    found = kept(tuple(rules))
    computed = 0
    while computed < tokens:
        end = min(computed + chunk, tokens)
        assert -(-end // BLOCK) - int(found.gap(computed // BLOCK)) <= found.most(tokens, chunk)
        computed = end


def test_heads_are_sorted_into_equal_groups_by_what_they_keep():
    found = sort(on_ranks(shipped(), 1), 4096, 6)
    assert sorted(found.of.values()) == [group for group in range(6) for _ in range(15)]
    blocks = np.arange(64)
    sums = [int((blocks + 1 - kept(rules).gap(blocks)).sum()) for rules in found.rules]
    assert sums == sorted(sums)
    for head, group in found.of.items():
        assert shipped().rule(*head) in found.rules[group]
    assert found.share == pytest.approx(sum(15 * total for total in sums) / (90 * (blocks + 1).sum()))


def test_the_fewest_groups_that_keep_little_too_much():
    heads = on_ranks(shipped(), 1)
    found = sort(heads, 4096)
    assert found.share <= NEAR * found.least
    fewer = [n for n in range(1, len(found.rules)) if 90 % n == 0]
    assert all(sort(heads, 4096, n).share > NEAR * found.least for n in fewer)
    assert sort(heads, 4096, 90).share == pytest.approx(found.least)


def test_one_group_where_all_keep_the_same():
    assert len(sort(on_ranks(Plan.dense(model(4, 2)), 1), 4096).rules) == 1


def test_groups_must_divide_the_heads():
    with pytest.raises(MoaError, match="moa_groups must divide the 90 KV heads, found 4: 1, 2, 3, 5"):
        sort(on_ranks(shipped(), 1), 4096, 4)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_every_rank_has_its_own_heads_and_all_ranks_the_same_groups(ranks):
    rules = {layer: [Rule(alpha=64 * (4 * layer + head), beta=0) for head in range(4)] for layer in range(3)}
    plan = Plan.from_rules(model(3, 4), rules)
    heads = on_ranks(plan, ranks)
    each = max(4 // ranks, 1)
    assert len(heads) == 3 * each
    for (layer, i), own in heads.items():
        for rank in range(ranks):
            head = rank * each + i if ranks <= 4 else rank // 2  # vLLM gives two ranks copies of one head
            assert own[rank] == rules[layer][head]
    found = sort(heads, 2048)
    for head, own in heads.items():
        assert set(own) <= set(found.rules[found.of[head]])


def test_ranks_that_split_a_head_are_refused():
    with pytest.raises(MoaError, match="must divide the 3 KV heads or be a multiple, found 2"):
        on_ranks(Plan.from_rules(model(2, 3), {}, defaults=FULL), 2)
