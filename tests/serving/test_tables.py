"""Page tables of the vLLM plugin against `plans/span.py`: each query reaches exactly the keys that its rule wants."""

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from moa.plans.patterns import Rule, reach
from moa.plans.span import BLOCK, first_block
from moa_vllm.tables import sequences

REQUESTS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 900)), min_size=1, max_size=5)


@given(requests=REQUESTS, sink=st.integers(1, 3), alpha=st.integers(-200, 500), beta256=st.integers(0, 256))
@example(requests=[(0, 5)], sink=1, alpha=0, beta256=0)
@example(requests=[(1, 63), (1, 64), (0, 64), (64, 64), (65, 127)], sink=1, alpha=0, beta256=0)
@example(requests=[(300, 0), (300, 300)], sink=1, alpha=0, beta256=256)
def test_each_query_sees_what_its_rule_says(requests, sink, alpha, beta256):
    new, past = (np.array(x) for x in zip(*requests, strict=True))
    rule = reach([Rule(sink=64 * sink, alpha=alpha, beta=beta256 / 256)]).reshape()
    found = sequences(new, past + new, rule)
    assert (np.diff(found.request) >= 0).all()
    assert found.queries.sum() == new.sum()
    at = past.copy()
    for request, queries, keys, blocks in zip(*found, strict=True):
        assert (blocks[-(-keys // BLOCK) :] == 0).all()
        for row in range(queries):
            seen = np.arange(keys - queries + row + 1)  # a causal kernel: the last query sees all keys
            positions = BLOCK * blocks[seen // BLOCK] + seen % BLOCK
            query = at[request] + row
            keys_before = np.arange(query + 1)
            first = first_block(64 * sink, alpha, beta256, query // BLOCK)
            wanted = keys_before[(keys_before < 64 * sink) | (keys_before // BLOCK >= first)]
            assert np.array_equal(positions, wanted)
        at[request] += queries
    assert np.array_equal(at, past + new)


def test_a_step_without_new_tokens_is_empty():
    rule = reach([Rule(alpha=128, beta=0)]).reshape()
    assert all(len(x) == 0 for x in sequences(np.zeros(2, np.int64), np.array([5, 9]), rule))


def test_blocks_that_see_everything_are_one_sequence():
    rule = reach([Rule(alpha=128, beta=0)]).reshape()
    found = sequences(np.array([400]), np.array([400]), rule)
    assert found.queries.tolist() == [192, 64, 64, 64, 16]
    assert found.keys.tolist() == [192, 192, 192, 192, 144]
