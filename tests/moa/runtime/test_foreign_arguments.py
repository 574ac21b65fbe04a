"""What models for more than text hand along with plain text, and models that handle staged keys in their own way."""

import peft
import pytest
import torch
import transformers
from feeding import run

import moa
from moa import KVCache, Plan, Unsupported


@pytest.fixture(scope="module")
def vision():
    """Gemma-3 with eyes: what attends is its text model."""
    torch.manual_seed(0)
    text = {
        "vocab_size": 61, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 48,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"], "initializer_range": 0.2,
    }  # fmt: skip
    eyes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=eyes | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=1,
        image_token_id=60, boi_token_index=59, eoi_token_index=58,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config).double().eval()


def test_plain_text_through_a_vision_model(vision, random_plan, tokens):
    """Its processor marks every token as text; transformers then makes a mask that adds nothing to a causal one."""
    plan, ids = random_plan(vision, 1), tokens(1, 300).clamp(max=57)
    with torch.no_grad():
        dense = vision(input_ids=ids).logits
        with moa.apply(vision, plan):
            expected = vision(input_ids=ids).logits
            types = torch.zeros_like(ids)
            assert torch.equal(vision(input_ids=ids, token_type_ids=types).logits, expected)
            options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
            found = vision.generate(input_ids=ids, token_type_ids=types, **options)
            assert isinstance(found.past_key_values, KVCache)
            assert torch.equal(found.sequences, vision.generate(input_ids=ids, **options).sequences)
    assert (dense - expected).abs().max() > 1e-2


def test_a_picture_among_the_text(vision, random_plan, tokens):
    ids = tokens(1, 70).clamp(max=57)
    types = torch.zeros_like(ids)
    types[0, 5:9] = 1
    with (
        moa.apply(vision, random_plan(vision, 1)),
        torch.no_grad(),
        pytest.raises(Unsupported, match="other than causal"),
    ):
        vision(input_ids=ids, token_type_ids=types)


@pytest.mark.parametrize("name", ["token_type_ids", "mm_token_type_ids"])
def test_types_of_tokens(model, plan, tokens, name):
    ids = tokens(1, 300)
    with moa.apply(model, plan), torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model(ids, **{name: torch.zeros_like(ids)}).logits, expected)
        with pytest.raises(Unsupported, match=name):
            model(ids, **{name: torch.ones_like(ids)})


@pytest.mark.parametrize(("family", "more"), [("DiffLlama", {}), ("JetMoe", {"kv_channels": 16})])
def test_models_that_work_on_cached_keys(fresh, tokens, family, more):
    """The reason is named, not that the plan is missing, which it is not."""
    model = fresh(family, dtype=torch.float32, **more)
    plan = Plan.dense(model)
    with moa.apply(model, plan), torch.no_grad(), pytest.raises(Unsupported, match=f"{family}.*does more with cached"):
        model(tokens(1, 8), past_key_values=KVCache(plan))
    with torch.no_grad(), pytest.raises(Unsupported, match=r"call moa.apply\(model, plan\) first"):
        model(tokens(1, 8), past_key_values=KVCache(plan))


def test_prefix_tuning(fresh, tokens):
    """A forward call attends under the plan; `generate` would lose its `KVCache` to one of peft's."""
    model, ids = fresh(dtype=torch.float32), tokens(1, 300)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        with moa.apply(adapted, Plan.dense(model)):
            torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=0, atol=1e-3)
            with pytest.raises(Unsupported, match=r"prefix tuning \(peft\) under a plan"):
                adapted.generate(input_ids=ids, max_new_tokens=2)
        assert adapted.generate(input_ids=ids, max_new_tokens=2).shape == (1, 302)


def test_drafts_longer_than_can_be_taken_back(model, plan, tokens):
    with moa.apply(model, plan):
        with pytest.raises(Unsupported, match="prompt_lookup_num_tokens=65 under a plan: at most 64"):
            model.generate(tokens(1, 70), max_new_tokens=2, prompt_lookup_num_tokens=65)
        model.generate(tokens(1, 70), max_new_tokens=2, prompt_lookup_num_tokens=64)


def test_a_row_that_ended_early_and_is_masked_afterwards(model, plan, tokens):
    ids, cache, mask = tokens(2, 90), KVCache(plan), torch.ones(2, 90, dtype=torch.int64)
    with moa.apply(model, plan), torch.no_grad():
        model(ids[:, :80], past_key_values=cache)
        mask[1, 75:80] = 0
        with pytest.raises(Unsupported, match=r"hides or shows.*reset the cache and pass the whole text"):
            model(ids[:, 80:], attention_mask=mask, past_key_values=cache)
        cache.reset()
        whole = run(model, cache, ids, mask)
        alone = model(torch.cat([ids[1:, :75], ids[1:, 80:]], 1)).logits
    assert cache.lengths.tolist() == [90, 85]
    torch.testing.assert_close(whole[1, 80:], alone[0, 75:], rtol=0, atol=1e-10)
