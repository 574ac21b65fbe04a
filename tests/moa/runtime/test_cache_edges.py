"""Uses of a cache that once went wrong: each scenario by itself."""

import copy

import numpy as np
import pytest
import torch
from feeding import feed, run

import moa
from moa import KVCache, Plan, Unsupported
from moa.kernels.store import capacities
from moa.kernels.torch.decode import _width
from moa.plans.plan import Rule
from moa.runtime.batch import BatchState
from moa.runtime.rules import Rules


def step(model, cache, ids):
    return model(ids, past_key_values=cache).logits


@pytest.mark.parametrize("lengths", [[10], [200, 333, 500, 64]])
def test_slabs_of_a_batch_grow_together_and_seldom(model, plan, lengths):
    rules, text = Rules(plan, 0), np.array(lengths)
    room, grown = rules.reserve(text), 0
    for _ in range(256):
        text = text + 1
        if (text > room).any():
            grown, room = grown + 1, rules.reserve(text)
            slots, due = (slots_of(rules, x) for x in (room, text))
            assert slots * 8 <= due * 9
            assert (room >= text).all()
    assert grown <= 256 // 64 * len(lengths)


def slots_of(rules: Rules, lengths) -> int:
    return int(capacities(rules.reach, lengths).sum())


def test_a_step_is_as_wide_as_its_longest_sequence():
    assert _width(torch.tensor([0, 64, 128, 192]), 192) == 64
    assert _width(torch.tensor([0, 1, 4]), 4) == 3
    assert _width(torch.tensor([0, 1, 2]), 2) == 1


@pytest.mark.parametrize("max_length", [None, 400])
@pytest.mark.parametrize("change", ["repeat", "reorder", "select", "copy"])
def test_changed_in_inference_mode_used_outside(model, plan, tokens, max_length, change):
    ids, cache = tokens(2, 301), KVCache(plan, max_length)
    with moa.apply(model, plan):
        with torch.inference_mode():
            step(model, cache, ids[:, :300])
            if change == "repeat":
                cache.batch_repeat_interleave(2)
            elif change == "reorder":
                cache.reorder_cache(torch.tensor([1, 0]))
            elif change == "select":
                cache.batch_select_indices(torch.tensor([1]))
            else:
                cache = copy.deepcopy(cache)
        rows = {"repeat": [0, 0, 1, 1], "reorder": [1, 0], "select": [1], "copy": [0, 1]}[change]
        with torch.no_grad():
            found = step(model, cache, ids[rows, 300:])
            expected = model(ids[rows]).logits[:, 300:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_a_copied_cache_shares_its_plan(plan):
    assert copy.deepcopy(KVCache(plan)).plan is plan


@pytest.mark.parametrize("max_length", [None, 200])
def test_on_a_device_that_must_not_wait_a_wrong_mask_is_refused_too(model, plan, tokens, max_length, monkeypatch):
    ids, cache = tokens(2, 101), KVCache(plan, max_length)
    with moa.apply(model, plan), torch.no_grad():
        step(model, cache, ids[:, :100])
        monkeypatch.setattr(BatchState, "may_sync", lambda self, new: False)
        mask = torch.ones_like(ids)
        mask[:, :30] = 0
        with pytest.raises(RuntimeError, match="other past tokens"):
            model(ids[:, 100:], attention_mask=mask, past_key_values=cache)


def test_after_a_call_that_sliding_layers_stored_and_others_refused(tiny, tokens):
    model, ids = tiny("Gemma3"), tokens(1, 105)
    plan = Plan.dense(model)
    cache = KVCache(plan, max_length=100)
    with moa.apply(model, plan), torch.no_grad():
        step(model, cache, ids[:, :98])
        with pytest.raises(Unsupported, match="max_length 100"):
            step(model, cache, ids[:, 98:103])
        with pytest.raises(Unsupported, match="reset the cache"):
            step(model, cache, ids[:, 98:100])
        cache.reset()
        found = step(model, cache, ids[:, :100])
    with torch.no_grad():
        torch.testing.assert_close(found, model(ids[:, :100]).logits, rtol=0, atol=1e-10)


@pytest.mark.parametrize("new", [1, 20, 100])
def test_autocast_is_as_the_dense_models(tiny, tokens, new):
    model, ids = tiny(dtype=torch.float32), tokens(2, 100 + new)
    plan = Plan.dense(model)
    with torch.no_grad():
        exact = model(ids).logits[:, 100:]
        with torch.autocast("cpu", torch.bfloat16):
            dense = model(ids).logits[:, 100:]
            with moa.apply(model, plan):
                cache = KVCache(plan)
                step(model, cache, ids[:, :100])
                found = step(model, cache, ids[:, 100:])
                without = model(ids, use_cache=False).logits[:, 100:]
    error = (dense - exact).abs().max()
    for logits in (found, without):
        assert logits.dtype == dense.dtype
        assert (logits - exact).abs().max() <= 2 * error  # two roundings of the same size may add up


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_reset_forgets_what_was_not_a_number(fresh, tokens, backend):
    model = fresh()
    plan, ids = Plan.uniform(model, 0.7, at=320), tokens(1, 400)
    cache = KVCache(plan, max_length=400)
    with moa.apply(model, plan, backend), torch.no_grad():
        embedded = model.get_input_embeddings()(ids[:, :300])
        embedded[:, 250:] = torch.nan
        model(inputs_embeds=embedded, past_key_values=cache)
        cache.reset()
        step(model, cache, ids[:, :100])
        assert step(model, cache, ids[:, 100:101]).isfinite().all()


@pytest.mark.parametrize("cached", [True, False])
def test_gradients_of_keys_and_values_alone_are_refused(fresh, tokens, cached):
    model = fresh().requires_grad_(False)
    attention = model.model.layers[-1].self_attn
    for projection in (attention.k_proj, attention.v_proj):
        projection.requires_grad_(True)
    plan = Plan.dense(model)
    with moa.apply(model, plan):
        loss = model(tokens(1, 20), use_cache=cached).logits.sum()
        with pytest.raises(Unsupported, match="gradients"):
            loss.backward()


@pytest.mark.parametrize("max_length", [None, 400])
@pytest.mark.parametrize("length", [255, 256, 320])
def test_taken_back_after_a_padded_single_column_all_is_right_or_refused(model, tokens, oracle, length, max_length):
    """A padded token's key lies where the next one will, which may be the place of the oldest block that is kept."""
    plan = Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0.0))
    ids, legal = tokens(2, length + 1), []
    for back in (1, 2, 64, 65, 66, 128):
        cache = KVCache(plan, max_length)
        with moa.apply(model, plan), torch.no_grad():
            mask = torch.ones_like(ids)
            mask[0, :200] = mask[1, length] = 0  # the first text is short: it loses nothing
            feed(model, cache, ids, [length, 1], mask)
            try:
                cache.crop(-back)
            except Unsupported:
                continue
            legal.append(back)
            left = length + 1 - back
            if back > 1:
                found = run(model, cache, ids[:, :length], mask[:, :length])
                expected = oracle(model, plan, ids[1, :length])[left:]
                torch.testing.assert_close(found[1], expected, rtol=0, atol=1e-10)
    assert legal == ([1, 2, 64, 65, 66, 128] if length == 255 else [1, 2, 64, 65])


@pytest.mark.parametrize("max_length", [None, 400])
def test_columns_taken_back_may_be_padded_otherwise_again(model, plan, tokens, oracle, max_length):
    """What was padding before the crop is text after it, and the other way round; then every column is real."""
    ids, mask = tokens(2, 160), torch.ones(2, 160, dtype=torch.int64)
    mask[0, 100:110] = 0
    other = torch.ones_like(mask)
    other[1, 95:105] = 0
    cache = KVCache(plan, max_length)
    with moa.apply(model, plan), torch.no_grad():
        feed(model, cache, ids, [120], mask)
        cache.crop(-30)
        feed(model, cache, ids, [40], other)
        assert cache.lengths.tolist() == [130, 120]
        cache.crop(-40)
        assert cache.lengths.tolist() == [90, 90]
        found = torch.cat([step(model, cache, ids[:, begin:end]) for begin, end in ((90, 91), (91, 160))], 1)
    for row in range(2):
        torch.testing.assert_close(found[row], oracle(model, plan, ids[row])[90:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_a_padded_column_where_a_slab_is_full(model, tokens, backend):
    """Its key is written too, one slot past the text: with no room there it would lie on a key that is wanted."""
    plan, ids, mask = Plan.dense(model), tokens(2, 131), torch.ones(2, 131, dtype=torch.int64)
    mask[0, 128] = 0
    with moa.apply(model, plan, backend), torch.no_grad():
        found = feed(model, KVCache(plan), ids, [128, 1, 1, 1], mask)[:, -1]
    with torch.no_grad():
        expected = torch.cat([model(row[kept.bool()][None]).logits[:, -1] for row, kept in zip(ids, mask, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def padded_left(cache, model, ids, lengths):
    """Feed texts of `lengths` tokens, aligned at their ends."""
    mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - torch.tensor(lengths)[:, None]).long()
    run(model, cache, ids, mask)
    return mask


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_a_chunk_of_which_a_sequence_has_nothing(model, plan, tokens, backend):
    ids, cache = tokens(2, 105), KVCache(plan)
    with moa.apply(model, plan, backend), torch.no_grad():
        step(model, cache, ids[:, :100])
        mask = torch.ones_like(ids)
        mask[1, 100:] = 0
        found = model(ids[:, 100:], attention_mask=mask, past_key_values=cache).logits[0]
        expected = model(ids[:1]).logits[0, 100:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert cache.lengths.tolist() == [105, 100]


def test_what_was_lost_before_a_slab_grew_stays_lost(model, tokens):
    """At 460 tokens the ring has 6 blocks and has lost block 1; that of 8 blocks, at 513, might have held it."""
    plan, ids = Plan.from_rules(model, {}, defaults=Rule(alpha=-100, beta=240 / 256)), tokens(1, 513)
    cache = KVCache(plan)
    with moa.apply(model, plan), torch.no_grad():
        step(model, cache, ids[:, :460])
        step(model, cache, ids[:, 460:])
    with pytest.raises(Unsupported, match="cannot crop 448 tokens"):
        cache.crop(-448)


@pytest.mark.parametrize("change", ["reset", "reorder"])
def test_a_text_lost_nothing_in_the_place_of_another_that_did(model, tokens, change):
    plan, ids = Plan.two_group(model, [], window=64), tokens(2, 600)
    cache = KVCache(plan, max_length=700)
    with moa.apply(model, plan), torch.no_grad():
        padded_left(cache, model, ids, [600, 200])
        cache.crop(-1)  # takes note of what is lost
        if change == "reset":
            cache.reset()
            step(model, cache, ids[:, :199])
        else:
            cache.reorder_cache(torch.tensor([1, 1]))
        cache.crop(-99)
    assert cache.lengths.tolist() == [100, 100]


@pytest.mark.parametrize("held", [47, 48])
def test_a_window_of_the_models_own_can_be_cropped_until_it_drops(tiny, tokens, held):
    model, ids = tiny("Gemma3"), tokens(1, 60)
    plan = Plan.dense(model)
    cache = KVCache(plan)
    with moa.apply(model, plan), torch.no_grad():
        step(model, cache, ids[:, :held])
        if held == 48:  # as many as the window: the first key is gone, which one token less would see
            with pytest.raises(Unsupported, match="sliding window of 48"):
                cache.crop(-1)
            return
        cache.crop(-1)
        found, expected = step(model, cache, ids[:, 46:]), model(ids).logits[:, 46:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
