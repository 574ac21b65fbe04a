"""What models for more than text hand along with plain text, and models that handle staged keys in their own way."""

import pytest
import torch
import transformers

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
