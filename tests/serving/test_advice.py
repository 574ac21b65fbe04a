"""What the vLLM plugin says at start-up."""

import pytest

from moa.plans.plan import Plan
from moa_vllm import advice
from moa_vllm.groups import kept, on_ranks, sort

LONGEST = 4096


@pytest.fixture(scope="module")
def groups():
    return sort(on_ranks(Plan.load("smollm2-135m-instruct-0.25"), 1), LONGEST, 6)


def test_a_request_needs_what_its_groups_hold_at_most(groups):
    for in_flight in (64, 512, 2 * 2048):
        most = [kept(rules).most(LONGEST, in_flight) for rules in groups.rules]
        assert advice.share(groups, LONGEST, in_flight) == pytest.approx(sum(most) / (6 * 64))
    assert advice.share(groups, LONGEST, LONGEST) == 1


@pytest.mark.parametrize(("longest", "best"), [(LONGEST, 512), (16384, 1024)])
def test_the_largest_chunk_is_advised_that_needs_little_more(groups, longest, best):
    said = advice.lines(groups, longest, 8192, 1, shared=True)
    assert len(said) == 2
    assert said[1].startswith(f"--max-num-batched-tokens {best} would need {advice.share(groups, longest, best):.2f}")
    assert "90 KV heads in 6 KV-cache groups" in said[0]
    assert f"needs {advice.share(groups, longest, 8192):.2f} while it is read in chunks of 8,192" in said[0]


def test_steps_that_are_in_flight_together_hold_their_chunks_together(groups):
    assert f"needs {advice.share(groups, LONGEST, 1024):.2f}" in advice.lines(groups, LONGEST, 512, 2, shared=True)[0]


def test_no_advice_where_chunks_are_short(groups):
    assert len(advice.lines(groups, LONGEST, 256, 2, shared=True)) == 1


def test_prefix_caching_is_said_to_find_nothing_where_sinks_move(groups):
    assert "prefix caching finds nothing" in advice.lines(groups, LONGEST, 256, 1, shared=False)[-1]
