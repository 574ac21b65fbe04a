"""What sinks of other keys hold as blocks leave the window and the last one comes back."""

import numpy as np
import pytest
import torch

from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.sink_contents import history
from moa.kernels.store import allocate

BLOCKS, SINKS = 8, np.array([64, 128])


def first_at(position: np.ndarray) -> np.ndarray:
    raise AssertionError("these tests say themselves what rows see")


@pytest.fixture
def case():
    """Two sequences of two groups, all blocks in the store, and what each sink holds at each edge."""
    k = torch.randn(2, 2, 64 * BLOCKS, 16, generator=torch.Generator().manual_seed(0))
    store = allocate(np.full((2, 2), 64 * BLOCKS), 16, torch.float32, "cpu")
    for s in range(2):
        for g in range(2):
            here = slice(int(store.base[s, g]), int(store.base[s, g]) + 64 * BLOCKS)
            store.k[here], store.v[here] = k[s, g], -k[s, g]
    held = [[history("keydiff")(k[s, g : g + 1], int(SINKS[g]), 64)[:, 0] for g in range(2)] for s in range(2)]
    return k, store, held


def holds(case, sinks, first):
    k, store, held = case
    assert (sinks.folded.numpy() == first).all()
    for s in range(2):
        for g in range(2):
            at, edge, size = int(store.base[s, g]), first[s, g], int(SINKS[g])
            if edge > size // 64:  # before, they are the first ones, and not written down
                assert torch.equal(sinks.position[s, g, :size], held[s][g][edge])
            assert torch.equal(store.k[at : at + size], k[s, g, held[s][g][edge]])
            assert torch.equal(store.v[at : at + size], -k[s, g, held[s][g][edge]])
            rest = slice(64 * edge, 64 * BLOCKS)  # besides the sink
            assert torch.equal(store.k[at : at + 64 * BLOCKS][rest], k[s, g, rest])


def test_a_block_that_left_comes_back_and_no_second_one(case):
    sinks, store = Sinks(SINKS, ("keydiff",) * 2, first_at, 2, torch.device("cpu")), case[1]
    for edge in range(3, 7):  # group 1's sink has two blocks
        first = np.array([[edge, edge], [edge - 1, edge]])
        sinks.advance(store, first)
        holds(case, sinks, first)
        before = first - [[0, 1], [1, 0]]
        assert sinks.can_take_back(first)
        assert sinks.can_take_back(before)
        assert not sinks.can_take_back(first - 2)
        assert not sinks.can_take_back(first - [[0, 0], [0, 2]])
        sinks.take_back(store, before)
        holds(case, sinks, before)
        assert sinks.can_take_back(before)
        assert sinks.can_take_back(before - [[1, 0], [0, 1]])
        assert not sinks.can_take_back(before - [[0, 1], [0, 0]])  # it came back already
        assert not sinks.can_take_back(before - [[0, 0], [1, 0]])


def test_only_the_sequences_that_matter_move(case):
    sinks, store = Sinks(SINKS, ("keydiff",) * 2, first_at, 2, torch.device("cpu")), case[1]
    sinks.advance(store, np.full((2, 2), 5), np.array([1]))
    holds(case, sinks, np.array([[1, 2], [5, 5]]))


def test_what_was_put_cannot_come_back(case):
    k, store, held = case
    sinks = Sinks(SINKS, ("keydiff",) * 2, first_at, 2, torch.device("cpu"))
    sinks.advance(store, np.full((2, 2), 4))
    assert sinks.can_take_back(np.full((2, 2), 3))
    at = held[1][0][4]
    score, position = sinks.score[1, :1, :64].clone(), sinks.position[1, :1, :64].clone()
    sinks.put(store, 1, [0], 4, k[1, :1, at], -k[1, :1, at], score, position)
    holds(case, sinks, np.full((2, 2), 4))
    assert not sinks.can_take_back(np.array([[4, 4], [3, 4]]))
    assert sinks.can_take_back(np.array([[3, 3], [4, 3]]))


def test_a_selection_is_a_copy(case):
    sinks, store = Sinks(SINKS, ("keydiff",) * 2, first_at, 2, torch.device("cpu")), case[1]
    sinks.advance(store, np.array([[4, 4], [5, 5]]))
    twin = sinks.select(torch.tensor([1, 1]))
    assert twin.folded.tolist() == [[5, 5], [5, 5]]
    assert torch.equal(twin.position[0], sinks.position[1])
    assert torch.equal(twin.score[0], sinks.score[1])
    sinks.advance(store, np.array([[4, 4], [6, 6]]))
    assert twin.folded.tolist() == [[5, 5], [5, 5]]
    assert torch.equal(twin.position[0], twin.position[1])
    assert not torch.equal(twin.position[0], sinks.position[1])
