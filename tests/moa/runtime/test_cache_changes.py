"""A cache that is copied, reordered, repeated, selected from or cropped goes on as one that was made so."""

import copy

import pytest
import torch
from feeding import run

import moa
from moa import KVCache, Plan, Unsupported


@pytest.mark.parametrize("max_length", [None, 400])
def test_deepcopy_shares_a_prefix(applied, plan, tokens, max_length):
    ids, cache = tokens(2, 330), KVCache(plan, max_length)
    run(applied, cache, ids[:, :250])
    twin = copy.deepcopy(cache)
    other = torch.cat([ids[:, :250], tokens(2, 80, 9)], 1)
    assert run(applied, twin, other).isfinite().all()
    whole = KVCache(plan, max_length)
    run(applied, whole, ids[:, :250])
    assert torch.equal(run(applied, cache, ids), run(applied, whole, ids))


@pytest.mark.parametrize("max_length", [None, 400])
def test_deepcopy_between_steps(applied, plan, tokens, max_length):
    """What a step leaves for the next is copied with the slabs that it points into."""
    ids, cache = tokens(2, 260), KVCache(plan, max_length)
    for n in (250, 251, 252):
        run(applied, cache, ids[:, :n])
    twin, other = copy.deepcopy(cache), torch.cat([ids[:, :252], tokens(2, 8, 9)], 1)
    for n in range(253, 261):  # crosses a block
        for one, text in ((cache, ids), (twin, other)):
            whole = KVCache(plan)
            expected = run(applied, whole, text[:, :n])[:, -1:]
            torch.testing.assert_close(run(applied, one, text[:, :n]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_length", [None, 400])
def test_batch_operations(applied, plan, tokens, max_length):
    ids = tokens(3, 330)
    mask = torch.ones(3, 330, dtype=torch.int64)
    mask[0, :100], mask[1, :7] = 0, 0

    def after(change, rows):
        cache = KVCache(plan, max_length)
        run(applied, cache, ids[:, :300], mask[:, :300])
        change(cache)
        found = run(applied, cache, ids[rows], mask[rows])
        whole = KVCache(plan, max_length)
        run(applied, whole, ids[rows][:, :300], mask[rows][:, :300])
        torch.testing.assert_close(found, run(applied, whole, ids[rows], mask[rows]), rtol=0, atol=1e-12)
        assert cache.lengths.tolist() == mask[rows].sum(1).tolist()

    after(lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0])), [2, 2, 0])
    after(lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2])
    after(lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1])
    after(lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2])


@pytest.mark.parametrize("max_length", [None, 400])
def test_crop_by_a_block_is_always_legal(applied, plan, tokens, max_length):
    ids = tokens(2, 331)
    for n in range(130, 331, 25):
        cache = KVCache(plan, max_length)
        run(applied, cache, ids[:, :n])
        cache.crop(-64)
        assert cache.get_seq_length() == n - 64
        whole = KVCache(plan, max_length)
        run(applied, whole, ids[:, : n - 64])
        torch.testing.assert_close(run(applied, cache, ids[:, :n]), run(applied, whole, ids[:, :n]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("max_length", [None, 700])
def test_crop_past_what_is_kept_is_refused_and_changes_nothing(model, tokens, max_length):
    plan = Plan.two_group(model, [], window=64)
    with moa.apply(model, plan), torch.no_grad():
        crop_too_far(model, plan, tokens, max_length)


def crop_too_far(applied, plan, tokens, max_length):
    ids, cache = tokens(1, 631), KVCache(plan, max_length)
    run(applied, cache, ids[:, :600])
    with pytest.raises(Unsupported, match="up to 64 tokens"):
        cache.crop(-300)
    cache.crop(-60)
    with pytest.raises(Unsupported, match="up to 64 tokens"):
        cache.crop(-60)  # the second block back is gone, though each step is small
    with pytest.raises(Unsupported, match="the cache holds 540"):
        cache.crop(-541)
    with pytest.raises(Unsupported, match="cannot crop 1 tokens, the cache holds 0"):
        KVCache(plan).crop(-1)
    assert cache.get_seq_length() == 540
    whole = KVCache(plan, max_length)
    run(applied, whole, ids[:, :540])
    torch.testing.assert_close(run(applied, cache, ids), run(applied, whole, ids), rtol=0, atol=1e-12)


def test_crop_of_anything_where_nothing_was_dropped(model, tokens):
    plan, ids = Plan.dense(model), tokens(1, 500)
    cache = KVCache(plan)
    with moa.apply(model, plan), torch.no_grad():
        whole = run(model, cache, ids)
        cache.crop(-433)
        torch.testing.assert_close(run(model, cache, ids), whole[:, 67:], rtol=0, atol=1e-12)
        cache.crop(-500)
        torch.testing.assert_close(run(model, cache, ids), whole, rtol=0, atol=1e-12)


def test_crop_counts_columns_of_padding(applied, plan, tokens):
    ids, mask = tokens(2, 140), torch.ones(2, 140, dtype=torch.int64)
    mask[0, 100:110] = 0
    cache = KVCache(plan)
    run(applied, cache, ids[:, :120], mask[:, :120])
    cache.crop(-15)  # five real tokens and ten padded ones of the first row
    assert cache.lengths.tolist() == [100, 105]
    whole = KVCache(plan)
    run(applied, whole, ids[:, :105], mask[:, :105])
    torch.testing.assert_close(
        run(applied, cache, ids, mask)[mask[:, 105:].bool()],
        run(applied, whole, ids, mask)[mask[:, 105:].bool()],
        rtol=0,
        atol=1e-12,
    )


def test_sliding_layers_that_cannot_are_named(tiny, tokens):
    model, ids = tiny("Gemma3"), tokens(2, 100)
    plan = Plan.dense(model)
    with moa.apply(model, plan), torch.no_grad():
        growing, fixed = KVCache(plan), KVCache(plan, max_length=200)
        run(model, growing, ids)
        run(model, fixed, ids)
        with pytest.raises(Unsupported, match="sliding window of 48"):
            growing.crop(-1)
        assert growing.get_seq_length() == 100
        for ask in (
            lambda: fixed.crop(-1),
            lambda: fixed.batch_repeat_interleave(2),
            lambda: fixed.batch_select_indices(torch.tensor([0])),
        ):
            with pytest.raises(Unsupported, match="StaticSlidingWindowLayer"):
                ask()
        assert not fixed.is_croppable
        growing.activate_past_recording()
        whole = run(model, growing, torch.cat([ids, ids[:, :5]], 1))
        growing.crop(-5)
        again = run(model, growing, torch.cat([ids, ids[:, :5]], 1))
    torch.testing.assert_close(again, whole, rtol=0, atol=1e-12)


def test_crop_takes_a_negative_number(applied, plan, tokens):
    cache = KVCache(plan)
    run(applied, cache, tokens(1, 8))
    with pytest.raises(Unsupported, match="minus the number"):
        cache.crop(3)
    cache.crop(0)
    assert cache.get_seq_length() == 8
