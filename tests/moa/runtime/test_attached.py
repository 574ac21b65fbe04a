"""What others do to a model while a plan is on it: it still computes under the plan, or refuses before it computes."""

import copy

import peft
import pytest
import torch

import moa
from moa import KVCache, Unsupported
from moa.runtime.attention import ATTRIBUTE

OURS = ("_prepare_cache_for_generation", "init_continuous_batching", "prepare_inputs_for_generation")


@pytest.fixture
def applied(model, plan):
    with moa.apply(model, plan) as applied:
        yield applied


def of_config(model):
    model.config._attn_implementation = "eager"


def of_an_outer_model(model):
    model.set_attn_implementation("eager")


def of_the_decoder(model):
    model.model.set_attn_implementation("sdpa")


def of_a_new_config(model):
    model.model.config = copy.deepcopy(model.config)
    model.model.config._attn_implementation = "sdpa"


def of_one_layer(model):
    attention = model.model.layers[1].self_attn
    attention.config = copy.deepcopy(attention.config)
    attention.config._attn_implementation = "sdpa"


@pytest.mark.parametrize("change", [of_config, of_an_outer_model, of_the_decoder, of_a_new_config, of_one_layer])
@pytest.mark.parametrize("call", ["forward", "without a cache", "generate", "compiled"])
def test_another_attention_implementation(applied, tokens, change, call):
    model, ids = applied.model, tokens(1, 70)
    change(model)
    torch._dynamo.reset()
    calls = {
        "forward": lambda: model(ids),
        "without a cache": lambda: model(ids, use_cache=False),
        "generate": lambda: model.generate(ids, max_new_tokens=2, use_cache=False),
        "compiled": lambda: torch.compile(model, backend="eager")(ids, use_cache=False),
    }
    with torch.no_grad(), pytest.raises(Unsupported, match=r"attention implementation is '(eager|sdpa)', set since"):
        calls[call]()


def test_set_back_it_goes_on(applied, tokens):
    ids = tokens(1, 400)
    with torch.no_grad():
        expected = applied.model(ids).logits
        applied.model.set_attn_implementation("sdpa")
        applied.model.set_attn_implementation("moa")
        assert torch.equal(applied.model(ids).logits, expected)


@pytest.mark.parametrize("change", [of_config, of_an_outer_model, of_the_decoder, of_a_new_config, of_one_layer])
def test_removed_afterwards_the_model_is_dense_again(model, plan, fresh, tokens, change):
    ids, dense, name = tokens(1, 400), fresh(), "eager" if change in (of_config, of_an_outer_model) else "sdpa"
    dense.set_attn_implementation(name)
    with moa.apply(model, plan):
        change(model)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, dense(ids).logits)
    assert model.config._attn_implementation == name
    assert not any(ATTRIBUTE in m.__dict__ or m._forward_pre_hooks for m in model.modules())
    assert not any(name in model.__dict__ for name in OURS)


def test_a_config_replaced_by_its_copy(model, plan, tokens):
    """Also when what is taken off stands in both of them."""
    ids = tokens(1, 400)
    with torch.no_grad():
        dense = model(ids).logits
        with moa.apply(model, plan):
            expected = model(ids).logits
            model.config = model.model.config = copy.deepcopy(model.config)
            assert torch.equal(model(ids).logits, expected)
        assert torch.equal(model(ids).logits, dense)


def test_without_its_hook(applied, tokens):
    applied.model.model._forward_pre_hooks.clear()
    with torch.no_grad(), pytest.raises(Unsupported, match="lost the pre-hook"):
        applied.model(tokens(1, 8))
    applied.remove()
    applied.model(tokens(1, 8))


def test_without_what_a_layer_needs(applied, tokens):
    delattr(applied.model.model.layers[1].self_attn, ATTRIBUTE)
    with torch.no_grad(), pytest.raises(Unsupported, match=r"LlamaAttention has lost .*_moa.*apply the plan again"):
        applied.model(tokens(1, 8))
    applied.remove()
    applied.model(tokens(1, 8))


def test_a_deep_copy_of_the_model_stands_by_itself(applied, plan, tokens):
    ids = tokens(1, 400)
    with torch.no_grad():
        expected = applied.model(ids).logits
        copied = copy.deepcopy(applied.model)
        assert copied.model.config is not applied.model.model.config
        assert torch.equal(copied(ids).logits, expected)
        applied.remove()
        assert not torch.equal(applied.model(ids).logits, expected)
        assert torch.equal(copied(ids, past_key_values=KVCache(plan)).logits, expected)
        out = copied.generate(ids, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        assert isinstance(out.past_key_values, KVCache)
        copied.set_attn_implementation("sdpa")
        with pytest.raises(Unsupported, match="set since"):
            copied(ids)


def test_continuous_batching(applied):
    with pytest.raises(Unsupported, match=r"continuous batching \(generate_batch\) under a plan"):
        applied.model.generate_batch(inputs=[[5] * 8])


def test_training_and_back_another_dtype_and_checkpointing(applied, plan, random_plan, fresh, tokens):
    ids, model = tokens(1, 400), applied.model
    with torch.no_grad():
        expected = model(ids).logits
        model.gradient_checkpointing_enable()
        model.train()
        with pytest.raises(Unsupported, match="training mode"):
            model(ids)
        assert torch.equal(model.eval()(ids).logits, expected)
        model.float()
        with moa.apply(single := fresh(dtype=torch.float32), plan):
            assert torch.equal(model(ids).logits, single(ids).logits)
            assert torch.equal(model.generate(ids, max_new_tokens=3), single.generate(ids, max_new_tokens=3))


def test_adapters_added_merged_and_taken_off(applied, plan, tokens, oracle):
    ids = tokens(1, 400)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(applied.model, config).double().eval()
    with torch.no_grad():
        found = adapted(input_ids=ids).logits[0]
        text = adapted.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits[0], found, rtol=0, atol=1e-10)
        assert torch.equal(merged.generate(ids, max_new_tokens=3, do_sample=False), text)
        applied.remove()
        torch.testing.assert_close(oracle(merged, plan, ids[0]), found, rtol=0, atol=1e-10)


def test_a_layer_whose_config_is_its_own_from_the_start(model, plan):
    layer = model.model.layers[1].self_attn
    layer.config = copy.deepcopy(layer.config)
    with pytest.raises(Unsupported, match="a config of its own"):
        moa.apply(model, plan)
    assert {model.config._attn_implementation, layer.config._attn_implementation} == {"sdpa"}
    assert not model.model._forward_pre_hooks
