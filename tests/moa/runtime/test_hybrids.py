"""Models whose layers are of several kinds: a plan rules those of full attention, and the others stay as they are."""

import copy
from typing import Any

import pytest
import torch
import transformers
from feeding import feed, padded, positions_of
from hybrids import FAMILIES, SHAPE, Oracle, ids_of, made, make, plan_of
from transformers import DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

import moa
from moa import KVCache, Plan
from moa.bench.timing import decode, disagreement
from moa.hf.calls import parts
from moa.plans.errors import Unsupported
from moa.runtime.staged import ATTRIBUTE
from moa.runtime.variant import Variant, allocated_bytes

CHUNKS = [70, 1, 1, 64, 70, 4]
ONES = [205, *[1] * 5]
CLOSE = {"rtol": 0, "atol": 1e-8}
STARTS_ANEW = ("Jamba", "Zamba")
"""Families whose scan forgets its state in a call of several tokens."""


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> Any:
    return made(family)


def calls_of(family: str) -> list[int]:
    return ONES if family in STARTS_ANEW else CHUNKS


@torch.no_grad()
@pytest.mark.parametrize("make_plan", [Plan.dense, plan_of], ids=["dense", "random"])
def test_each_way_to_feed_a_model_is_the_masked_model(family, model, make_plan):
    plan, chunks = make_plan(model), calls_of(family)
    ids, n = ids_of(2, sum(chunks)), sum(chunks)
    mask = padded(ids, [(23, n), (0, n)])
    ways = {
        "no cache": lambda cache: model(ids, use_cache=False).logits,
        "one pass": lambda cache: feed(model, cache, ids, [n]),
        "chunks": lambda cache: feed(model, cache, ids, chunks),
        "left padding": lambda cache: feed(model, cache, ids, chunks, mask) * mask[..., None],
    }
    for name, way in ways.items():
        with Oracle(model, plan, mask if name == "left padding" else None):
            expected = way(DynamicCache(config=model.config))
        with moa.apply(model, plan, "torch"):
            caches = KVCache(plan), DynamicCache(config=model.config), KVCache(plan, max_length=n)
            for cache in caches[:1] if name == "no cache" or make_plan is Plan.dense else caches:
                torch.testing.assert_close(way(cache), expected, **CLOSE, msg=lambda m, at=(name, cache): f"{at}: {m}")


@torch.no_grad()
def test_the_plan_changes_something(model):
    ids = ids_of(1, 210)
    dense = model(ids, use_cache=False).logits
    with Oracle(model, plan_of(model)):
        assert (model(ids, use_cache=False).logits - dense).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_is_that_of_the_masked_model(family, model, beams):
    plan, ids = plan_of(model), ids_of(2, 220)
    mask = padded(ids, [(23, 220), (0, 220)])
    options: dict[str, Any] = {
        "attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": beams,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    room = torch.ones(2, 8, dtype=mask.dtype)
    with Oracle(model, plan, torch.cat([mask, room], 1)):
        expected = model.generate(ids, **options)
    with moa.apply(model, plan, "torch"):
        found = [model.generate(ids, **options)]
        if family != "Llama4Text":  # whose masks transformers 5.17 cannot make in advance, as a fixed cache wants them
            found.append(model.generate(ids, past_key_values=KVCache(plan, max_length=230), **options))
    for out in found:
        assert torch.equal(out.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits), rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Qwen3_5Text", "Lfm2"])
@pytest.mark.parametrize("new", [1, 4])
def test_padding_that_a_state_has_taken_in_is_noticed(family, new):
    model, ids = make(family), ids_of(2, 30)
    mask = padded(ids, [(0, 20), (0, 30)])
    whole = torch.cat([mask, torch.ones(2, new).long()], 1)
    call = {"attention_mask": whole, "position_ids": positions_of(whole)[:, 30:]}
    with moa.apply(model, Plan.dense(model), "torch"):
        caches = [model(ids, attention_mask=mask).past_key_values, DynamicCache(config=model.config)]
        feed(model, caches[1], ids, [30])
        for cache in caches:
            with pytest.raises(Unsupported, match="padding after a token"):
                model(ids_of(2, new), past_key_values=cache, **call)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Qwen3_5Text", "Lfm2"])
def test_a_mask_wider_than_the_text_is_refused_where_states_would_read_its_end(family):
    model, ids = make(family), ids_of(2, 60)
    plan, mask = Plan.dense(model), torch.ones(2, 80).long()
    with (
        moa.apply(model, plan, "torch"),
        pytest.raises(Unsupported, match="a mask of 80 columns for 60 tokens"),
    ):
        model(ids, attention_mask=mask, past_key_values=KVCache(plan, max_length=80))


@torch.no_grad()
def test_removed_the_model_is_as_it_was(family):
    model, ids = make(family), ids_of(1, 100)
    before, names = model(ids).logits, {name: sorted(vars(module)) for name, module in model.named_modules()}
    for implementation in ("sdpa", "eager") if getattr(model, "_supports_sdpa", False) else ("eager",):
        model.set_attn_implementation(implementation)
        before = model(ids).logits
        applied = moa.apply(model, plan_of(model), "torch")
        model(ids)
        applied.remove()
        assert model.config._attn_implementation == implementation
        assert torch.equal(model(ids).logits, before)
        assert {name: sorted(vars(module)) for name, module in model.named_modules()} == names
        hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks or ATTRIBUTE in vars(m)]
        assert not hooks


@torch.no_grad()
@pytest.mark.parametrize("after", ["the first layer", "the first with rules"])
def test_after_a_call_that_failed_midway_the_next_is_refused_until_the_cache_is_reset(model, after):
    plan, ids = plan_of(model), ids_of(2, 201)
    index = 0 if after == "the first layer" else plan.model.ruled_layers[0]
    failing = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)][index]
    step = {"position_ids": torch.full((1, 1), 200), "attention_mask": torch.ones_like(ids)}

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with moa.apply(model, plan, "torch"):
        cache, expected = KVCache(plan), feed(model, KVCache(plan), ids, [200, 1])
        feed(model, cache, ids, [200])
        hook = failing.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 200:], past_key_values=cache, **step)
        hook.remove()
        with pytest.raises(Unsupported, match=r"cut short.*reset the cache|for each of 202 tokens"):
            model(ids[:, 200:], past_key_values=cache, **step)
        cache.reset()
        torch.testing.assert_close(feed(model, cache, ids, [200, 1]), expected, **CLOSE)
        cache.reset()  # for a smaller batch
        torch.testing.assert_close(feed(model, cache, ids[:1], [200, 1]), expected[:1], rtol=0, atol=1e-5)


@torch.no_grad()
def test_bytes_are_what_the_plan_says_and_states_stand_apart(model):
    plan, ids = plan_of(model), ids_of(2, 210)
    with moa.apply(model, plan, "torch"):
        growing, fixed, stock = KVCache(plan), KVCache(plan, max_length=210), DynamicCache(config=model.config)
        for cache in (growing, fixed, stock):
            feed(model, cache, ids, [210])
    kept = plan.kv_bytes(210, 2, "float64")
    assert kept <= growing.nbytes <= kept * 9 / 8
    windowed = plan.model.sliding.layers if plan.model.sliding else ()  # which StaticCache gives one column more
    more = sum(2 * heads * sum(sizes) * 8 for heads, *sizes in map(plan.model.kv_shape, windowed))
    assert fixed.nbytes == kept + more
    assert allocated_bytes(stock) == plan.model.dense_kv_bytes(210, 2, "float64")
    states = [layer for layer in stock.layers if hasattr(layer, "conv_states")]
    held = [x for layer in states for x in (*layer.conv_states.values(), *layer.recurrent_states.values())]
    assert growing.state_bytes == fixed.state_bytes == sum(x.nbytes for x in held if x is not None)
    assert (growing.state_bytes > 0) == bool(plan.model.stateful_layers)
    assert copy.deepcopy(growing).state_bytes == growing.state_bytes


@torch.no_grad()
def test_padding_that_a_state_would_take_in_is_refused():
    model, ids = made("Qwen3_5Text"), ids_of(2, 12)
    plan = Plan.dense(model)
    masks = {
        "after the text": padded(ids, [(0, 9), (0, 12)]),
        "within it": torch.tensor([[1] * 4 + [0] * 2 + [1] * 6, [1] * 12]),
    }
    with moa.apply(model, plan, "torch"):
        for cache in (KVCache(plan), DynamicCache(config=model.config)):
            for mask in masks.values():
                with pytest.raises(Unsupported, match="padding after a token"):
                    feed(model, cache, ids, [12], mask)
            with pytest.raises(Unsupported, match="alone in a call"):  # a single token is never masked to states
                feed(model, cache, ids, [1], padded(ids, [(2, 12), (0, 12)]))
            feed(model, cache, ids, [6, 6], padded(ids, [(6, 12), (0, 12)]))
    model = made("GPTBigCode")
    with moa.apply(model, Plan.dense(model), "torch"):
        feed(model, KVCache(Plan.dense(model)), ids_of(2, 12), [12], masks["within it"])


@torch.no_grad()
def test_calls_that_a_model_computes_wrong_are_refused():
    model, ids = made("Jamba"), ids_of(1, 12)
    plan = Plan.dense(model)
    with moa.apply(model, plan, "torch"):
        cache = KVCache(plan)
        feed(model, cache, ids, [8])
        with pytest.raises(Unsupported, match=r"4 tokens after those .* the scan of JambaModel restarts"):
            feed(model, cache, ids, [4])
    model = made("Bamba")
    plan = Plan.dense(model)
    with moa.apply(model, plan, "torch"):
        cache = KVCache(plan)
        model(ids, past_key_values=cache)
        with pytest.raises(Unsupported, match=r"BambaModel does not ask .* pass position_ids"):
            model(ids[:, :1], past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("family", ["Bamba", "Jamba", "Lfm2"])
def test_our_own_calls_are_those_that_a_model_computes_right(family):
    model, ids = made(family), ids_of(1, 20)
    cache, held, found = DynamicCache(config=model.config), 0, []
    for new in ids.split([8, 12], 1):
        for part, where in parts(model, new, held):
            found.append(model(part, past_key_values=cache, **where).logits)
        held += new.shape[1]
    torch.testing.assert_close(torch.cat(found, 1), model(ids).logits, rtol=0, atol=1e-4)


def test_a_cache_of_the_model_s_own_is_refused_by_name():
    config = transformers.MiniMaxConfig(
        **SHAPE, num_hidden_layers=2, head_dim=16, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = transformers.MiniMaxForCausalLM(config)
    with pytest.raises(Unsupported, match="MiniMaxModel has a cache of its own, MiniMaxCache"):
        moa.apply(model, Plan.dense(model))


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({"Gemma4Text", "Lfm3", "Llama4Text"} & FAMILIES.keys()))
def test_windows_of_the_model_s_own_keep_its_attention_implementation(family):
    """Eager attention adds its mask, which must not be the boolean one of torch's attention."""
    model, ids = make(family, attn_implementation="eager"), ids_of(2, 100)
    expected = feed(model, DynamicCache(config=model.config), ids, [60, 1, 39])
    with moa.apply(model, Plan.dense(model), "torch"):
        found = feed(model, KVCache(Plan.dense(model)), ids, [60, 1, 39])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # its softmax is in float32
    assert model.config._attn_implementation == "eager"


@torch.no_grad()
@pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=pytest.mark.full)])
@pytest.mark.parametrize("family", sorted({"Gemma4Text"} & FAMILIES.keys()))
def test_full_attention_with_wider_heads_than_the_windows(family, backend):
    """As Gemma-4 has them: 512 channels beside 256, and fewer KV heads."""
    model, ids = make(family, num_attention_heads=2, global_head_dim=512, num_global_key_value_heads=2), ids_of(2, 160)
    model.float()
    plan = plan_of(model)
    assert (plan.model.kv_shape(0), plan.model.kv_shape(1)) == ((2, 16, 16), (2, 512, 512))
    with Oracle(model, plan):
        expected = feed(model, DynamicCache(config=model.config), ids, [150, 1, 9])
    with moa.apply(model, plan, backend):
        found = feed(model, KVCache(plan), ids, [150, 1, 9])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.startswith(("Qwen3_5T", "Nemotron", "Gemma4", "Falcon", "Kimi"))]
)
def test_decode_steps_are_timed_from_a_cache_that_is_filled(family):
    model = made(family)
    for variant in (Variant(), Variant(plan_of(model), backend="torch"), Variant(plan_of(model), True, "torch")):
        assert len(decode(model, variant, 200, 2, steps=2)) == 2
        assert disagreement(model, variant, ids_of(1, 40)) < 1e-4
