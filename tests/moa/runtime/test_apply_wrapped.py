"""Models that others have changed: adapters, quantised weights, layers on several devices."""

import accelerate
import peft
import pytest
import torch
import transformers

import moa
from moa import KVCache


def test_lora(fresh, random_plan, tokens, oracle):
    model, ids = fresh(), tokens(1, 220)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "k_proj", "v_proj"])
    adapted = peft.get_peft_model(model, config).double().eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.2)
    plan = random_plan(adapted, 1)
    expected = oracle(model, plan, ids[0])
    with adapted.disable_adapter():
        assert (oracle(model, plan, ids[0]) - expected).abs().max() > 1e-2
    with moa.apply(adapted, plan), torch.no_grad():
        torch.testing.assert_close(adapted(input_ids=ids).logits[0], expected, rtol=0, atol=1e-10)
        out = adapted.generate(input_ids=ids, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
        without = adapted.generate(input_ids=ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert isinstance(out.past_key_values, KVCache)
    assert torch.equal(out.sequences, without)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_quantised_weights(fresh, random_plan, tokens, oracle):
    model = fresh(dtype=torch.float32)
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    ids, plan = tokens(1, 220), random_plan(model, 1)
    expected = oracle(quantised, plan, ids[0])
    with torch.no_grad():
        dense = quantised(ids).logits[0]
    with moa.apply(quantised, plan), torch.no_grad():
        found = quantised(ids, past_key_values=KVCache(plan)).logits[0]
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)
        # Activations are quantised by the largest of a call, so only calls alike may be compared.
        options = {"max_new_tokens": 12, "do_sample": False}
        with_cache = quantised.generate(ids, **options, return_dict_in_generate=True)
        with_a_stock_cache = quantised.generate(ids, past_key_values=transformers.DynamicCache(), **options)
    assert isinstance(with_cache.past_key_values, KVCache)
    assert torch.equal(with_cache.sequences, with_a_stock_cache)
    assert not torch.equal(with_cache.sequences, quantised.generate(ids, **options))
    assert (dense - expected).abs().max() > 0.1


def test_device_map_of_several_entries(fresh, random_plan, tokens, oracle, tmp_path):
    """Layers dispatched apart by accelerate's hooks; the second part's weights live on disk between calls."""
    model, ids = fresh(), tokens(1, 220)
    plan = random_plan(model, 1)
    expected = oracle(model, plan, ids[0])
    parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    parts |= {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "disk"}
    accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=tmp_path)
    assert next(model.model.layers[1].parameters()).device.type == "meta"
    with moa.apply(model, plan) as applied, torch.no_grad():
        assert applied.backend == ("numba",)
        torch.testing.assert_close(model(ids).logits[0], expected, rtol=0, atol=1e-10)
        found = model.generate(ids, max_new_tokens=6, do_sample=False)
        assert torch.equal(found, model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))
