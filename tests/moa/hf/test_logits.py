"""Logits made a few positions at a time are the model's own, whatever it does after its decoder."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from moa.evaluation.rows import Row
from moa.evaluation.tasks.text import divergence
from moa.hf.logits import check_head, hidden_of, logits_of
from moa.plans.errors import Unsupported

MAMBA = {
    "mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}  # fmt: skip
LATENT = {"kv_lora_rank": 32, "q_lora_rank": 48, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16}
HEADS = {
    "Llama": {},
    "ModernBertDecoder": {"cls_token_id": 1, "sep_token_id": 2},
    "Granite": {"logits_scaling": 8.0},
    "Cohere": {"logit_scale": 0.0625},
    "Cohere2": {"logit_scale": 0.0625, "head_dim": 16},
    "Gemma2": {"head_dim": 16, "final_logit_softcapping": 3.0},
    "FalconH1": {"head_dim": 16, "lm_head_multiplier": 0.2, **MAMBA},
    "MiniCPM3": {"dim_model_base": 16, "num_key_value_heads": 4, **LATENT},
    "NanoChat": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 64},
}


@pytest.mark.parametrize("family", HEADS)
def test_perplexity_is_the_models_own_loss(family, fresh, tokens):
    model, ids = fresh(family, torch.float32, pad_token_id=0, **HEADS[family]), tokens(1, 41)
    found = divergence(model, [Row("dense", None)], ids[0].tolist())["dense"]
    assert sum(found["nll"]) / 4 == pytest.approx(model(ids, labels=ids).loss.item(), rel=1e-5)
    assert max(found["kl"]) < 1e-6


@pytest.mark.parametrize("setting", [{"output_hidden_states": True}, {"use_cache": False}])
def test_settings_that_a_checkpoint_brings_along(setting, fresh, tokens):
    model, ids = fresh(), tokens(1, 12)
    expected = model(ids).logits[0].float()
    for name, value in setting.items():
        setattr(model.config, name, value)
    torch.testing.assert_close(logits_of(model, hidden_of(model, ids)), expected)


def test_a_wrapped_model(fresh, tokens):
    bare, ids = fresh(), tokens(1, 12)
    wrapped = get_peft_model(bare, LoraConfig(target_modules=["q_proj"], init_lora_weights=False)).eval()
    torch.testing.assert_close(logits_of(wrapped, hidden_of(wrapped, ids)), wrapped(ids).logits[0].float())


class Copying(transformers.LlamaForCausalLM):
    """Its logits depend on the tokens themselves, too."""

    def forward(self, input_ids, **kwargs):
        out = super().forward(input_ids, **kwargs)
        return type(out)(logits=out.logits + torch.nn.functional.one_hot(input_ids, out.logits.shape[-1]))


def test_a_head_that_sees_more_than_hidden_states_is_refused(fresh, tokens):
    model = Copying(fresh().config).eval()
    for _ in range(2):
        with pytest.raises(Unsupported, match="Copying does more to its logits"):
            logits_of(model, hidden_of(model, tokens(1, 12)))


def test_no_head(fresh, tokens):
    for model in (fresh().model, torch.nn.Linear(2, 2)):
        with pytest.raises(Unsupported, match=f"{type(model).__name__} has no decoder below a head"):
            check_head(model)


def test_the_decoder_is_left_as_it_was(fresh, tokens):
    model = fresh()
    hidden = hidden_of(model, tokens(1, 12))
    logits_of(model, hidden)
    assert "forward" not in vars(model.model)
    model.model.forward = hooked = model.model.forward  # as accelerate's hooks do
    logits_of(model, hidden)
    assert model.model.forward is hooked
