"""Pages that no rule reaches go back to the pool, and nothing that is kept is lost."""

import pytest
from tiny import manager, pool, prompt
from vllm import SamplingParams

from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa_vllm.groups import kept, on_ranks, sort


def held(llm) -> list[list[int]]:
    """The places in the text of the blocks that the only request holds, group by group."""
    managers = manager(llm).coordinator.single_type_managers
    return [
        [i for i, block in enumerate(blocks) if not block.is_null]
        for one in managers
        for blocks in one.req_to_blocks.values()
    ]


@pytest.mark.parametrize("plan", ["windows", "keydiffs"])
def test_each_step_holds_what_the_rules_say(engine, plans, plan):
    llm = engine(plan, max_num_batched_tokens=128, async_scheduling=False)
    groups = sort(on_ranks(Plan.load(plans[plan]), 1), 1024).rules
    all_free = pool(llm).get_num_free_blocks()
    text, new = 600, 80
    settings = SamplingParams(max_tokens=new, ignore_eos=True)
    llm.llm_engine.add_request("0", {"prompt_token_ids": prompt(text, 1)}, settings)
    computed = 0
    while llm.llm_engine.has_unfinished_requests():
        before, computed = computed, min(computed + 128, text) if computed < text else computed + 1
        llm.llm_engine.step()
        now = held(llm)
        if not now:  # it has finished
            break
        total = sum(-(-computed // BLOCK) - int(kept(rules).gap(before // BLOCK)) for rules in groups)
        assert sum(map(len, now)) == total
        assert pool(llm).get_num_free_blocks() == all_free - total
    assert computed == text + new - 1
    assert pool(llm).get_num_free_blocks() == all_free


def test_requests_that_are_cancelled_leave_nothing(engine):
    llm = engine("keydiffs", max_num_batched_tokens=64)
    all_free = pool(llm).get_num_free_blocks()
    for i in range(6):
        ids = {"prompt_token_ids": prompt(100 * i + 30, i)}
        llm.llm_engine.add_request(str(i), ids, SamplingParams(max_tokens=50, ignore_eos=True))
    for step in range(30):
        llm.llm_engine.step()
        if step % 5 == 0:
            llm.llm_engine.abort_request([str(step // 5)])
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    assert pool(llm).get_num_free_blocks() == all_free
