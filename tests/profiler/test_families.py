"""Whatever model a plan can be applied to can be profiled."""

from typing import Any

import pytest
import torch
import transformers

import moa
from moa.plans.errors import Unsupported
from moa.plans.plan import Plan
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.estimate import peak_bytes
from moa.profiler.recorder import recording

SHAPE = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
FAMILIES = {
    "GPT2LMHeadModel": ("GPT2Config", GPT2),
    "GPTBigCodeForCausalLM": ("GPTBigCodeConfig", GPT2),
    "CTRLLMHeadModel": ("CTRLConfig", GPT2 | {"dff": 48}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SHAPE),
    "OPTForCausalLM": ("OPTConfig", SHAPE | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "PersimmonForCausalLM": ("PersimmonConfig", SHAPE),
    "BioGptForCausalLM": ("BioGptConfig", SHAPE),
    "StableLmForCausalLM": ("StableLmConfig", SHAPE | {"num_key_value_heads": 2}),
}


def make(name: str) -> Any:
    config, shape = FAMILIES[name]
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**shape, bos_token_id=1, eos_token_id=2)).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_families_whose_modules_or_configs_name_things_otherwise(name: str) -> None:
    model = make(name)
    ids = [1 + i * 7 % 60 for i in range(192)]
    tokens = torch.tensor([ids])
    before = model(tokens).logits
    with moa.apply(model, Plan.dense(model)), torch.no_grad():
        torch.testing.assert_close(model(tokens, use_cache=False).logits, before)
    with recording(model, [("sink_window", 64)]) as recorder:
        run_backward(model, whole_text(ids), "given", "nll", torch.Generator())
        table = recorder.take()
    assert table.shape == (1, 2, Plan.dense(model).model.kv_heads, 3, 3)
    assert (table[..., 2, 2] > 0).all()  # a real cut does harm
    assert torch.equal(model(tokens).logits, before)  # the model is as it was
    assert peak_bytes(model, 2048) > peak_bytes(model, 1024) > 0


def test_heads_that_the_config_says_and_the_model_has_not() -> None:
    config = transformers.GPTNeoXConfig(**SHAPE, num_key_value_heads=2)  # kept, and never read
    model = transformers.GPTNeoXForCausalLM(config).eval()
    refused = "4 query heads, 4 key heads of size 8 .* 4 query heads and 2 key and value heads of size 8"
    ids = [1 + i * 7 % 60 for i in range(192)]
    with moa.apply(model, Plan.dense(model)), torch.no_grad():
        for cache in (None, moa.KVCache(Plan.dense(model)), transformers.DynamicCache()):
            with pytest.raises(Unsupported, match=refused):
                model(torch.tensor([ids]), past_key_values=cache)
    with pytest.raises(Unsupported, match=refused), recording(model, [("sink_window", 64)]):
        run_backward(model, whole_text(ids), "given", "nll", torch.Generator())


def test_a_model_is_not_profiled_under_an_applied_plan() -> None:
    model = make("GPT2LMHeadModel")
    with (
        moa.apply(model, Plan.dense(model)),
        pytest.raises(Unsupported, match="under a plan: remove it first"),
        recording(model, [("sink_window", 64)]),
    ):
        pass
    with recording(model, [("sink_window", 64)]), pytest.raises(Unsupported, match="being profiled"):
        moa.apply(model, Plan.dense(model))
    moa.apply(model, Plan.dense(model)).remove()


def test_what_no_plan_can_honour_is_not_profiled() -> None:
    config = transformers.GPT2Config(**GPT2, add_cross_attention=True)
    with (
        pytest.raises(Unsupported, match="GPT2Attention attends to another model"),
        recording(transformers.GPT2LMHeadModel(config), [("sink_window", 64)]),
    ):
        pass
