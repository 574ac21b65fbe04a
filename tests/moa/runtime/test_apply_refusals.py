"""What the runtime cannot honour is refused by name, before anything is computed wrongly."""

import pytest
import torch
import transformers
from transformers import DynamicCache, QuantizedCache, StaticCache

import moa
from moa import KVCache, Plan, Unsupported


def test_training_mode(applied, tokens):
    with pytest.raises(Unsupported, match="training mode"):
        applied.train()(tokens(1, 8))


def test_gradients(applied, tokens):
    with torch.enable_grad():
        loss = applied(tokens(1, 8)).logits.sum()  # the forward pass is fine
    with pytest.raises(Unsupported, match="gradients"):
        loss.backward()


def test_output_attentions(applied, tokens):
    with pytest.raises(Unsupported, match="output_attentions"):
        applied(tokens(1, 8), output_attentions=True)
    with pytest.raises(Unsupported, match="output_attentions"):
        applied.generate(tokens(1, 8), max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)


@pytest.mark.parametrize("mask", [torch.ones(1, 1, 8, 8, dtype=torch.bool), torch.zeros(1, 1, 8, 8)])
def test_4d_masks(applied, tokens, mask):
    with pytest.raises(Unsupported, match="4-D"):
        applied(tokens(1, 8), attention_mask=mask)


def test_packed_sequences(applied, tokens):
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]])
    with pytest.raises(Unsupported, match="packed"):
        applied(tokens(1, 8), position_ids=positions, use_cache=False)


def test_packed_sequences_by_offsets(applied, tokens):
    offsets = torch.tensor([0, 4, 8], dtype=torch.int32)
    with pytest.raises(Unsupported, match="cu_seq_lens_q"):
        applied(tokens(1, 8), cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)


def test_static_cache(applied, tokens):
    with pytest.raises(Unsupported, match=r"StaticCache.*KVCache\(plan, max_length"):
        applied(tokens(1, 8), past_key_values=StaticCache(config=applied.config, max_cache_len=32))
    with pytest.raises(Unsupported, match="cache_implementation='static'"):
        applied.generate(tokens(1, 8), max_new_tokens=2, cache_implementation="static")


def test_other_caches(applied, tokens):
    with pytest.raises(Unsupported, match="QuantizedCache"):
        applied(tokens(1, 8), past_key_values=object.__new__(QuantizedCache))
    with pytest.raises(Unsupported, match="cache_implementation='offloaded'"):
        applied.generate(tokens(1, 8), max_new_tokens=2, cache_implementation="offloaded")


def test_cache_without_a_plan_on_the_model(model, plan, tokens):
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        with pytest.raises(Unsupported, match=r"moa.apply"):
            model(tokens(1, 8), past_key_values=KVCache(plan))
        with pytest.raises(Unsupported, match=r"moa.apply"):
            model.generate(tokens(1, 8), max_new_tokens=2, past_key_values=KVCache(plan))


def test_cache_of_another_plan(applied, tokens):
    with pytest.raises(moa.ModelMismatch, match="another plan"):
        applied(tokens(1, 8), past_key_values=KVCache(Plan.dense(applied)))


def test_an_equal_plan_is_the_same_plan(applied, plan, tokens):
    again = Plan.from_dict(plan.to_dict())
    applied(tokens(1, 8), past_key_values=KVCache(again))


@pytest.mark.parametrize("columns", [5, 20])
def test_mask_of_another_width(applied, tokens, columns):
    with pytest.raises(Unsupported, match="attention_mask must have a column"):
        applied(tokens(1, 8), attention_mask=torch.cat([torch.zeros(1, 1), torch.ones(1, columns - 1)], 1).long())


def test_mask_of_new_tokens_alone(applied, plan, tokens):
    cache = KVCache(plan)
    applied(tokens(1, 8), past_key_values=cache)
    with pytest.raises(Unsupported, match="column for each of 12"):
        applied(tokens(1, 4), past_key_values=cache, attention_mask=torch.ones(1, 4))


def test_mask_that_hides_stored_tokens(applied, plan, tokens):
    cache = KVCache(plan)
    applied(tokens(1, 8), past_key_values=cache)
    mask = torch.ones(1, 12)
    mask[0, 2] = 0
    with pytest.raises(Unsupported, match="hides or shows"):
        applied(tokens(1, 4), past_key_values=cache, attention_mask=mask)


@pytest.mark.parametrize("max_length", [None, 20])
def test_mask_that_pads_other_tokens_than_before(applied, plan, tokens, max_length):
    cache, mask = KVCache(plan, max_length), torch.ones(1, 12)
    mask[0, 2] = 0
    applied(tokens(1, 8), past_key_values=cache, attention_mask=mask[:, :8])
    mask[0, 2:4] = torch.tensor([1, 0])
    with pytest.raises(Unsupported, match="hides or shows"):
        applied(tokens(1, 4), past_key_values=cache, attention_mask=mask)


def test_a_soft_cap_or_learned_sinks_that_a_module_does_not_pass_on(fresh, tokens):
    for trait, value in (("attn_logit_softcapping", 30.0), ("sinks", torch.nn.Parameter(torch.zeros(4)))):
        model = fresh()
        setattr(model.model.layers[1].self_attn, trait, value)
        with (
            moa.apply(model, Plan.dense(model)),
            pytest.raises(Unsupported, match=f"LlamaAttention has {trait} that it does not pass on as"),
        ):
            model(tokens(1, 8))


def test_learned_sinks_of_another_shape(applied, tokens):
    with pytest.raises(Unsupported, match=r"one number for each of 4 query heads, found a tensor of \[4, 8\]"):
        applied(tokens(1, 8), s_aux=torch.zeros(4, 8))


def test_gradients_of_learned_sinks_alone(applied, tokens):
    applied.requires_grad_(False)
    sinks = torch.zeros(4, requires_grad=True)
    with torch.enable_grad():
        loss = applied(tokens(1, 8), s_aux=sinks).logits.sum()
    with pytest.raises(Unsupported, match="gradients"):
        loss.backward()


@pytest.mark.parametrize(("argument", "value"), [("sliding_window", 4), ("is_causal", False)])
def test_arguments_of_the_attention_function(applied, tokens, argument, value):
    with pytest.raises(Unsupported, match=r"sliding window|bidirectional"):
        applied(tokens(1, 8), **{argument: value})


def test_tensor_arguments_unknown_to_it(applied, tokens):
    with pytest.raises(Unsupported, match="position_bias"):
        applied(tokens(1, 8), position_bias=torch.zeros(1, 4, 8, 8))


def test_alibi():
    config = transformers.BloomConfig(vocab_size=61, hidden_size=64, n_layer=2, n_head=4)
    model = transformers.BloomForCausalLM(config).eval()
    with pytest.raises(Unsupported, match="attention interface"):
        moa.apply(model, Plan.dense(model))


def test_encoder_decoder():
    config = transformers.T5Config(vocab_size=61, d_model=64, d_kv=16, num_layers=2, num_heads=4, d_ff=64)
    with pytest.raises(Unsupported, match="encoder-decoder"):
        Plan.dense(config)


def test_cross_attention():
    config = transformers.GPT2Config(vocab_size=61, n_embd=64, n_layer=2, n_head=4, add_cross_attention=True)
    model = transformers.GPT2LMHeadModel(config).eval()
    with pytest.raises(Unsupported, match="cross-attention"):
        moa.apply(model, Plan.dense(model))


def test_bidirectional(fresh):
    model = fresh()
    model.config.is_causal = False
    with moa.apply(model, Plan.dense(model)), pytest.raises(Unsupported, match="bidirectional"):
        model(torch.ones(1, 8, dtype=torch.int64), use_cache=False)


def test_not_a_transformers_model(plan):
    with pytest.raises(Unsupported, match="Linear"):
        moa.apply(torch.nn.Linear(2, 2), plan)


def test_a_stock_dynamic_cache_is_welcome(applied, tokens):
    cache = DynamicCache(config=applied.config)
    applied(tokens(1, 8), past_key_values=cache)
    assert cache.get_seq_length() == 8
