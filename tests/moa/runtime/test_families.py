import pytest
import torch
import transformers
from transformers import DynamicCache

import moa
from moa import KVCache, Plan
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.recorder import recording

FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_dense_plan_is_the_model(family, backend, tiny, tokens):
    model, ids = tiny(family), tokens(2, 150)
    with torch.no_grad():
        expected = model(ids).logits
        with moa.apply(model, Plan.dense(model), backend):
            found = model(ids, use_cache=False).logits
            cached = model(ids, past_key_values=KVCache(Plan.dense(model))).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(cached, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
def test_random_plan_is_the_masked_model(family, backend, tiny, tokens, random_plan, oracle):
    model, ids, plan = tiny(family), tokens(1, 330), random_plan(tiny(family), FAMILIES.index(family))
    expected = oracle(model, plan, ids[0])
    dense = oracle(model, Plan.dense(model), ids[0])
    assert (expected - dense).abs().max() > 1e-2  # the plan does something
    with moa.apply(model, plan, backend), torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits[0], expected, rtol=0, atol=1e-10)
        cache = KVCache(plan)
        parts = [model(part, past_key_values=cache).logits[0] for part in ids.split([70, 1, 1, 64, 130, 3, 61], 1)]
    torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_greedy_search_without_a_cache(family, tiny, tokens, random_plan):
    model, ids, plan = tiny(family), tokens(2, 190), random_plan(tiny(family), 3)
    with moa.apply(model, plan):
        with_cache = model.generate(ids, max_new_tokens=12, do_sample=False)
        without = model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(with_cache, without)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 1), (6, 2)])
def test_group_sizes(heads, kv_heads, tiny, tokens, random_plan, oracle):
    model = tiny("Llama", num_attention_heads=heads, num_key_value_heads=kv_heads, hidden_size=16 * heads)
    ids, plan = tokens(1, 260), random_plan(model, 5)
    with moa.apply(model, plan), torch.no_grad():
        found = model(ids, use_cache=False).logits[0]
    torch.testing.assert_close(found, oracle(model, plan, ids[0]), rtol=0, atol=1e-10)


def test_mistral_with_windows_of_its_own_takes_no_rules(fresh):
    with pytest.raises(moa.Unsupported, match=r'set "sliding_window": null in its config\.json'):
        Plan.dense(fresh("Mistral", sliding_window=64))


def test_left_padding_of_a_model_for_images_and_text(random_plan, tokens):
    text = {
        "vocab_size": 61, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "layer_types": ["full_attention"] * 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration(config).double().eval()
    ids, mask = tokens(2, 120), torch.ones(2, 120, dtype=torch.int64)
    mask[0, :23] = 0
    with moa.apply(model, random_plan(model, 4)):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        alone = model.generate(ids[:1, 23:], max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert torch.equal(found[0, 23:], alone[0])


WIDE = {
    "Phi3": {"sliding_window": 2048},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1},
}


@pytest.mark.parametrize("family", WIDE)
def test_a_window_no_shorter_than_the_longest_text_is_none(family, fresh, tokens, random_plan, oracle):
    model, ids = fresh(family, **WIDE[family]), tokens(1, 330)
    plan = random_plan(model, 4)
    assert plan.model.ruled_layers == (0, 1)
    expected = oracle(model, plan, ids[0])
    with moa.apply(model, plan), torch.no_grad():
        torch.testing.assert_close(model(ids, use_cache=False).logits[0], expected, rtol=0, atol=1e-10)
        for cache in (KVCache(plan), DynamicCache(config=model.config)):
            parts = [model(part, past_key_values=cache).logits[0] for part in ids.split([70, 1, 1, 258], 1)]
            torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-10)
        padded, mask = torch.cat([ids[:, :60], ids], 1), torch.ones(1, 390, dtype=torch.int64)
        mask[0, :60] = 0
        found = model.generate(padded, attention_mask=mask, max_new_tokens=8, do_sample=False)
        assert torch.equal(found[:, 60:], model.generate(ids, max_new_tokens=8, do_sample=False))
        with pytest.raises(moa.Unsupported, match="packed sequences"):
            model(ids[:, :8], position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]]), use_cache=False)
    with recording(model, [("sink_window", 64)]) as recorder:
        run_backward(model, whole_text(ids[0].tolist()), "given", "nll", torch.Generator())
        assert (recorder.take()[:, :, :, 5, 2:] > 0).all()


def test_a_text_longer_than_a_window_that_is_none_is_refused(fresh, tokens):
    model = fresh("Phi3", max_position_embeddings=128, sliding_window=128)
    plan = Plan.dense(model)
    with moa.apply(model, plan), torch.no_grad():
        model(tokens(1, 128), use_cache=False)
        with pytest.raises(moa.Unsupported, match=r"has a window of 128 of its own"):
            model(tokens(1, 129), use_cache=False)
        cache = KVCache(plan)
        model(tokens(1, 128), past_key_values=cache)
        with pytest.raises(moa.Unsupported, match=r"has a window of 128 of its own"):
            model(tokens(1, 1), past_key_values=cache)


def test_gemma3_keeps_its_windows_with_padding(tiny, tokens, random_plan, oracle):
    model, plan = tiny("Gemma3"), random_plan(tiny("Gemma3"), 4)
    ids, mask = tokens(2, 120), torch.ones(2, 120, dtype=torch.int64)
    mask[0, :23] = 0
    with moa.apply(model, plan):
        found = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
        alone = model.generate(ids[:1, 23:], max_new_tokens=8, do_sample=False)
    assert torch.equal(found[0, 23:], alone[0])


@pytest.mark.skipif(not hasattr(transformers, "MiMoV2FlashConfig"), reason="of a later transformers")
def test_values_of_another_size_than_keys_are_refused_by_name(tokens):
    config = transformers.MiMoV2FlashConfig(
        vocab_size=61, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, intermediate_size=96,
        num_hidden_layers=2, layer_types=["full_attention"] * 2, mlp_layer_types=["dense"] * 2, head_dim=16,
        v_head_dim=8, sliding_window=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with (
        moa.apply(model, Plan.dense(model), "torch"),
        torch.no_grad(),
        pytest.raises(moa.Unsupported, match="keys of size 16 and values of size 8; plans need one size of both"),
    ):
        model(tokens(1, 20), use_cache=False)
