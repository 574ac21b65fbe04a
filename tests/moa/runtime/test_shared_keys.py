"""Layers that share the keys of an earlier one: its rules are theirs too, and the last of them to read stores."""

import copy
from typing import Any

import pytest
import torch
import transformers
from feeding import feed, padded
from hybrids import FAMILIES, Oracle, ids_of, made, make, plan_of
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

import moa
from moa import KVCache, Plan
from moa.plans.errors import Unsupported
from moa.plans.patterns import KeyDiffWindow, Rule
from moa.runtime.staged import Staged

SHARING = sorted({"Gemma4Sharing", "Gemma3nText"} & FAMILIES.keys())
CHUNKS = [70, 1, 1, 128, 200]
CLOSE = {"rtol": 0, "atol": 1e-8}


@pytest.fixture(params=SHARING)
def model(request) -> Any:
    return made(request.param)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_every_back_end_serves_several_readers(model, backend):
    plan, ids = plan_of(model, 3), ids_of(2, sum(CHUNKS))
    mask = padded(ids, [(23, len(ids[0])), (0, len(ids[0]))])
    with Oracle(model, plan, mask):
        expected = feed(model, DynamicCache(config=model.config), ids, CHUNKS, mask) * mask[..., None]
    with moa.apply(model, plan, backend):
        for cache in (KVCache(plan), KVCache(plan, max_length=sum(CHUNKS))):
            torch.testing.assert_close(feed(model, cache, ids, CHUNKS, mask) * mask[..., None], expected, **CLOSE)


@torch.no_grad()
def test_sinks_that_change_are_the_same_for_every_reader(model):
    rules = [KeyDiffWindow(sink=64, alpha=128, beta=0.0), KeyDiffWindow(sink=128, alpha=0, beta=0.5)]
    shape = Plan.dense(model).model
    plan = Plan.from_rules(model, dict.fromkeys(shape.ruled_layers, rules))
    ids = ids_of(2, 460)
    with moa.apply(model, plan, "torch"):
        expected = model(ids, use_cache=False).logits
        for chunks in ([460], [300, 1, 1, 100, 58], [190, *[1] * 70, 200]):
            for cache in (KVCache(plan), KVCache(plan, max_length=460)):
                torch.testing.assert_close(feed(model, cache, ids, chunks), expected, **CLOSE)


@torch.no_grad()
def test_every_reader_reads_pages_by_its_own_queries(model):
    """Of calls that cross into a block where sinks change, and of sequences with few and with many new tokens."""
    rules = [KeyDiffWindow(sink=64, alpha=200, beta=0.5, read=1 / 4), Rule(alpha=0, beta=1, read=1 / 4)]
    shape = Plan.dense(model).model
    plan = Plan.from_rules(model, dict.fromkeys(shape.ruled_layers, rules))
    ids, chunks = ids_of(2, 480), [380, 1, 10, 29, 30, 16, 14]
    mask = padded(ids, [(0, 480), (30, 400)])
    with moa.apply(model, plan, "reference"):
        expected = feed(model, DynamicCache(config=model.config), ids, chunks, mask) * mask[..., None]
        for cache in (KVCache(plan), KVCache(plan, max_length=480)):
            torch.testing.assert_close(feed(model, cache, ids, chunks, mask) * mask[..., None], expected, **CLOSE)
        assert (model(ids, attention_mask=mask, use_cache=False).logits[0, 381] - expected[0, 381]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 3, torch.tensor([5, 119])])
@pytest.mark.parametrize("left", [0, 23])
def test_logits_of_some_positions_are_those_of_all(model, keep, left):
    plan, ids = plan_of(model), ids_of(2, 120)
    mask = padded(ids, [(left, 120), (0, 120)])
    with moa.apply(model, plan, "torch"):
        expected = model(ids, attention_mask=mask, use_cache=False).logits
        expected = expected[:, -keep:] if isinstance(keep, int) else expected[:, keep]
        for cache in (None, KVCache(plan), DynamicCache(config=model.config)):
            found = model(ids, attention_mask=mask, past_key_values=cache, logits_to_keep=keep).logits
            torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.skipif(
    not hasattr(transformers.modeling_utils, "slice_logits_to_keep"), reason="transformers 5.17 computes all of them"
)
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_layers_that_share_keys_compute_the_last_token_of_a_prompt_alone(backend):
    """As without a plan, so that a prefill costs no more; keys are then stored before these layers read them."""
    model, ids = made("Gemma4Sharing"), ids_of(2, 300)
    plan, widths = plan_of(model, 3), []
    hook = model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    with Oracle(model, plan):
        expected = [model(ids[:, :n], use_cache=False).logits[:, -1:] for n in (150, 151, 201, 300)]
    widths.clear()
    with moa.apply(model, plan, backend):
        for cache in (KVCache(plan), DynamicCache(config=model.config), None):
            for (start, stop), logits in zip(((0, 150), (150, 151), (151, 201), (201, 300)), expected, strict=True):
                new = ids[:, 0 if cache is None else start : stop]
                found = model(new, past_key_values=cache, logits_to_keep=1, use_cache=cache is not None).logits
                torch.testing.assert_close(found, logits, **CLOSE)
        assert set(widths) == {1}
        model(ids, past_key_values=KVCache(plan, max_length=300), logits_to_keep=1)
        assert widths.pop() == 300  # a fixed cache
        padding = padded(ids, [(2, 300), (0, 300)])
        model(ids, attention_mask=padding, past_key_values=KVCache(plan), logits_to_keep=1)
        assert widths.pop() == 300
    hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("after", [-2, -1])
@pytest.mark.parametrize("kept", [False, True])
def test_after_a_call_that_failed_among_the_readers_the_next_is_refused(model, after, kept):
    plan, ids = plan_of(model), ids_of(1, 140)
    block = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)][after]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with moa.apply(model, plan, "torch"):
        cache = KVCache(plan) if kept else DynamicCache(config=model.config)
        feed(model, cache, ids, [130])
        hook = block.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            feed(model, cache, ids, [5])
        hook.remove()
        for again in (cache, copy.deepcopy(cache)):
            with pytest.raises(Unsupported, match="cut short.*: reset the cache" if kept else "cut short.*a new one"):
                model(ids[:, 130:], past_key_values=again)
        if kept:
            cache.reset()
            torch.testing.assert_close(feed(model, cache, ids, [130, 10]), feed(model, KVCache(plan), ids, [130, 10]))


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({"Qwen3_5Text", "GPTBigCode"} & FAMILIES.keys()))
def test_a_stock_cache_of_a_call_that_failed_is_refused_in_any_model(family):
    model, ids = make(family), ids_of(1, 40)
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with moa.apply(model, Plan.dense(model), "torch"):
        cache = model(ids).past_key_values
        model(ids[:, :1], past_key_values=cache)
        hook = blocks[-1].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, :1], past_key_values=cache)
        hook.remove()
        with pytest.raises(Unsupported, match=r"an earlier call was cut short.*: pass a new one"):
            model(ids[:, :1], past_key_values=cache)


def test_a_handle_is_read_as_often_as_the_config_says():
    k = torch.zeros(1, 1, 4, 2)
    staged = Staged(k, k, 0, lambda query, *_, first, last, **__: (first, last), 2)
    assert [staged.attend(k, None, softmax=None, backend=None) for _ in range(2)] == [(True, False), (False, True)]
    with pytest.raises(Unsupported, match="2 layers share, by the config, are read by another one"):
        staged.attend(k, None, softmax=None, backend=None)
    for width, mask, readers in ((1, None, 2), (2, None, 1), (1, torch.ones(1, 4), 1)):
        staged = Staged(k, k, 0, lambda *_, **__: None, 2)
        for _ in range(2 - readers):
            staged.attend(k, None, softmax=None, backend=None)
        with pytest.raises(Unsupported, match=f"{width} queries to keys of 4 new tokens"):
            staged.attend(k[:, :, :width], mask, softmax=None, backend=None)


def test_a_handle_is_on_the_device_of_its_keys():
    """Transformers 5.17 asks that of each reader."""
    k = torch.zeros(1, 1, 4, 2)
    staged = Staged(k, k, 0, lambda *_, **__: None, 2)
    assert staged.to(k.device) is staged
    with pytest.raises(Unsupported, match="layers on cpu and meta share keys: put them on one device"):
        staged.to(torch.device("meta"))


@pytest.mark.skipif(not SHARING, reason="of a later transformers")
def test_what_a_config_may_say_of_shared_layers():
    shape = {"num_hidden_layers": 4, "num_kv_shared_layers": 3}
    for kinds, found in (
        (["full_attention", "full_attention", "sliding_attention", "full_attention"], "layer 2 .* or none"),
        (["sliding_attention"] * 3 + ["full_attention"], "layer 3 .* or none"),
    ):
        with pytest.raises(Unsupported, match=found):
            Plan.dense(transformers.Gemma4TextConfig(**shape, layer_types=kinds))
    whole = shape | {"num_kv_shared_layers": 2, "max_position_embeddings": 512, "sliding_window": 512}
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    with pytest.raises(Unsupported, match=r"layer 2 .* counts as full_attention is another"):
        Plan.dense(transformers.Gemma4TextConfig(**whole, layer_types=kinds, global_head_dim=256))
