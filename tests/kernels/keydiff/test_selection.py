"""Which keys a sink of other keys holds."""

import pytest
import torch

from moa.kernels.keydiff.selection import PINNED, history, scores, winners


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, n, 16, generator=torch.Generator().manual_seed(seed))


def test_a_score_knows_its_block_alone_and_no_scale() -> None:
    k = keys(192)
    found = scores(k)
    assert found.abs().max() <= 1 + 1e-6
    other = torch.cat([keys(64, 1), k[:, 64:128] * 3, keys(64, 2)], 1)
    torch.testing.assert_close(scores(other)[:, 64:128], found[:, 64:128])


def test_the_key_unlike_the_others_scores_most() -> None:
    k = torch.ones(1, 64, 16) + 0.1 * keys(64)[:1]
    k[0, 17] = -1
    assert int(scores(k).argmax()) == 17


def test_fast_pairs_do_not_count() -> None:
    k = keys(64)
    moved = k.clone()
    moved[..., [0, 1, 2, 3, 8, 9, 10, 11]] += 5  # the first half of either half
    torch.testing.assert_close(scores(moved), scores(k))
    moved[..., 4] += 5
    assert (scores(moved) - scores(k)).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [2, 4, 6, 8, 64, 80, 96, 128])
def test_a_score_is_the_same_to_the_last_bit_in_every_call(size, dtype) -> None:
    """Alone, with other blocks, groups and sequences, in any layout of memory: a sum's order may depend on those."""
    k = torch.randn(3, 5 * 64, size, generator=torch.Generator().manual_seed(size)).to(dtype)
    alone = torch.stack([torch.cat([scores(block.clone()) for block in group.split(64)]) for group in k])
    for layout in ((0, 1, 2), (1, 0, 2), (2, 1, 0), (0, 2, 1), (2, 0, 1)):
        back = [layout.index(dim) for dim in range(3)]
        x = k.permute(layout).contiguous().permute(back)
        for found in (
            scores(x),
            scores(x[None, :, None])[0, :, 0],
            torch.stack([scores(group) for group in x]),
            torch.cat([scores(part) for part in x.split([64, 192, 64], 1)], 1),
            torch.cat([scores(part) for part in x.split(64, 1)], 1),
        ):
            assert torch.equal(found, alone)


def test_of_equals_the_earlier_wins() -> None:
    assert winners(torch.tensor([0.0, 1, 1, 1, 2]), 3).tolist() == [1, 2, 4]


@pytest.mark.parametrize("k", [keys(500), keys(64).repeat(1, 8, 1)[:, :500]], ids=["others", "equals"])
def test_history_is_the_best_of_all_that_left(k) -> None:
    sink = 64
    score = scores(k[:, :448])
    score[:, :PINNED] = torch.inf
    found = history(k, sink, 64, scores_of=scores)
    assert found.shape == (8, 2, sink)
    for edge in range(8):
        best = winners(score[:, : max(sink, 64 * edge)], sink)
        assert torch.equal(found[edge], best)
    assert torch.equal(history(k, sink, 128, scores_of=scores), found[::2])  # several blocks at once are the same keys
