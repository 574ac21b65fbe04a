"""The longest prefix of which all is there that its next query sees."""

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import WINDOWS

from moa.plans.span import BLOCK
from moa_vllm.groups import kept
from moa_vllm.manager import HeadManager


class Pool:
    """Blocks of a text by their places, some of which are there, in each of two groups."""

    hash_block_size, null_block = BLOCK, "null"

    def __init__(self, there) -> None:
        self.there = there

    def get_cached_block(self, place, groups):
        return [f"{place} of {group}" for group in groups] if self.there[place] else None


def wanted(keeps, there, length, step):
    """By trying each length."""
    for blocks in range(length // BLOCK, 0, -1):
        seen = {*range(min(keeps.sink, blocks)), *range(max(int(keeps.first(blocks)), keeps.sink), blocks)}
        if blocks % step == 0 and all(there[i] for i in seen):
            return blocks, seen
    return 0, set()


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("rules", [(WINDOWS[0][0],), tuple(WINDOWS[1]), tuple(WINDOWS[2]), (WINDOWS[1][1],)], ids=str)
def test_longest_prefix(rules, step):
    random, keeps, found = np.random.default_rng(0), kept(rules), set()
    for _ in range(200):
        there = random.random(20) < random.choice([0.7, 0.9, 1.0])
        length = int(random.integers(0, 20 * BLOCK + 1))
        hit, tokens = HeadManager.find_longest_cache_hit(
            list(range(20)), length, [3, 5], Pool(there), SimpleNamespace(shared=True, kept=keeps), False, step * BLOCK
        )
        blocks, seen = wanted(keeps, there, length, step)
        assert tokens == BLOCK * blocks
        for group, row in zip((3, 5), hit, strict=True):
            assert row == [f"{i} of {group}" if i in seen else "null" for i in range(blocks)]
        found.add(blocks)
    assert len(found) > 3


def test_nothing_is_shared_where_sinks_move():
    spec = SimpleNamespace(shared=False, kept=kept((WINDOWS[0][0],)))
    there = Pool(np.ones(20, bool))
    assert HeadManager.find_longest_cache_hit(list(range(20)), 20 * BLOCK, [3], there, spec, False, BLOCK) == (([],), 0)
