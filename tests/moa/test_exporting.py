"""`moa.block_masks`: masks of FlexAttention against the plan's definition, pair by pair."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention

import moa
from moa.plans.errors import PlanError, Unsupported
from moa.plans.model import ModelInfo, Sliding
from moa.plans.patterns import Rule, SinkWindow
from moa.plans.plan import FULL, Plan

MODEL = ModelInfo(
    architecture="LlamaForCausalLM", layers=2, query_heads=4, kv_heads=2, head_size=16, rope={"type": "default"}
)
RULES = st.builds(
    SinkWindow, sink=st.sampled_from([64, 128, 192]), alpha=st.integers(-200, 500),
    beta=st.integers(0, 256).map(lambda k: k / 256),
)  # fmt: skip


def defined(rule: Rule, n: int) -> torch.Tensor:
    """Which keys each query sees [n, n], in the words of docs/plan.md."""
    seen = torch.zeros(n, n, dtype=torch.bool)
    for row in range(n):
        block = row // 64
        window = max(rule.alpha + rule.beta * (64 * block + 1) - rule.sink, 64)
        first = max(rule.sink // 64, int((64 * block + 1 - window) // 64))
        for key in range(row + 1):
            seen[row, key] = key < rule.sink or key // 64 >= first
    return seen


def blocks(mask: BlockMask, counts: str, indices: str) -> torch.Tensor:
    """The lists of blocks as a table [heads, lines, columns]."""
    number, order = getattr(mask, counts)[0], getattr(mask, indices)[0]
    table = torch.zeros(order.shape, dtype=torch.bool)
    for head in range(order.shape[0]):
        for line in range(order.shape[1]):
            table[head, line, order[head, line, : number[head, line]].long()] = True
    return table


def grown(table: torch.Tensor, n: int) -> torch.Tensor:
    return table.repeat_interleave(128, 1).repeat_interleave(128, 2)[:, :n, :n]


@settings(deadline=None, max_examples=12)
@given(st.lists(RULES, min_size=2, max_size=2), st.sampled_from([1, 63, 64, 65, 129, 300, 513]))
def test_a_mask_is_the_plan_s_definition(rules: list[Rule], n: int) -> None:
    plan = Plan.from_rules(MODEL, {0: rules}, defaults=FULL)
    mask = moa.block_masks(plan, n)[0]
    wanted = torch.stack([defined(rule, n) for rule in rules]).repeat_interleave(2, 0)
    assert torch.equal(create_mask(mask.mask_mod, 1, 4, n, n, device="cpu")[0], wanted)
    partly, wholly = blocks(mask, "kv_num_blocks", "kv_indices"), blocks(mask, "full_kv_num_blocks", "full_kv_indices")
    assert not (wanted & ~grown(partly | wholly, n)).any()
    assert not (grown(wholly, n) & ~wanted).any()
    assert (wanted[:, -1].sum(-1)[::2].numpy() == plan.spans(n)[0]).all()


def test_attention_by_the_mask_is_attention_by_the_definition() -> None:
    torch.manual_seed(0)
    n, rules = 300, [Rule(alpha=130, beta=0), Rule(alpha=0, beta=0.5)]
    mask = moa.block_masks(Plan.from_rules(MODEL, {1: rules}, defaults=FULL), n)[1]
    q, (k, v) = torch.randn(2, 4, n, 16), torch.randn(2, 2, 2, n, 16)
    found = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    seen = torch.stack([defined(rule, n) for rule in rules]).repeat_interleave(2, 0)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    assert torch.allclose(found, wanted, atol=1e-5)


def test_layers_with_windows_of_their_own_have_no_mask_and_readers_that_of_their_source() -> None:
    model = MODEL.model_copy(
        update={"layers": 5, "sliding": Sliding(window=32, layers=(0,)), "shared": {"full_attention": (3, 4)}}
    )
    masks = moa.block_masks(Plan.dense(model), 130)
    assert list(masks) == [1, 2, 3, 4]
    assert masks[2] is masks[3] is masks[4]


def test_what_is_refused() -> None:
    changing = Plan.from_rules(MODEL, {}, defaults=Rule(pattern="keydiff_window", alpha=128, beta=0))
    with pytest.raises(Unsupported, match="which keys the sinks of this plan hold"):
        moa.block_masks(changing, 64)
    with pytest.raises(PlanError, match="length must be from 1 to 16777216, found 0"):
        moa.block_masks(Plan.dense(MODEL), 0)
