"""Layers that cache latents (MLA): one rule for all query heads, over one vector per token that is key and value."""

import copy
from dataclasses import replace

import pytest
import torch
from feeding import feed
from hybrids import FAMILIES, Oracle, ids_of, made, make, plan_of
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache

import moa
from moa import KVCache, MoaError, Plan, PlanError
from moa.kernels.registry import TORCH
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo
from moa.plans.patterns import Rule
from moa.profiler.settings import Settings, every
from moa.runtime import attention

pytestmark = pytest.mark.skipif("DeepseekV3" not in FAMILIES, reason="transformers does not know it")
CHUNKS = [70, 1, 1, 64, 70, 4]


@pytest.fixture
def model():
    return made("DeepseekV3")


def test_its_shape_is_one_vector_for_all_heads(model):
    info = ModelInfo.of(model)
    assert (info.query_heads, info.kv_heads, info.head_size, info.latent) == (4, 1, 32, 24)
    assert info.kv_shape(0) == (1, 24, 8)
    assert info.token_bytes("float64") == 32 * 8
    for part in ({"kv_heads": 2}, {"latent": 33}):
        with pytest.raises(ValueError, match="must be part of the head_size"):
            ModelInfo.model_validate(info.model_dump() | part)


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_back_end_gives_what_the_masked_model_gives(backend, dtype):
    model, ids = make("MiniCPM3").to(dtype), ids_of(2, 210)
    plan = plan_of(model)
    with Oracle(copy.deepcopy(model).double(), plan) as exact:
        expected = feed(exact, DynamicCache(config=model.config), ids, CHUNKS)
    with moa.apply(model, plan, backend):
        found = feed(model, KVCache(plan), ids, CHUNKS)
    close = 1e-4 if dtype is torch.float32 else 0.1
    assert (found.double() - expected).abs().max() < close * expected.std()


@torch.no_grad()
def test_adapted_projections_expand_as_they_do_alone():
    model, ids = make("MiniCPM3"), ids_of(1, 150)
    adapted = get_peft_model(model, LoraConfig(target_modules=["kv_b_proj"], r=2, init_lora_weights=False)).eval()
    with Oracle(model, plan_of(model)):
        expected = feed(model, DynamicCache(config=model.config), ids, [100, 1, 49])
    with moa.apply(adapted, plan_of(model), "torch"):
        found = feed(model, KVCache(plan_of(model)), ids, [100, 1, 49])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@torch.no_grad()
def test_a_copy_of_a_model_under_a_plan_is_under_it_too(model):
    ids = ids_of(1, 150)
    with moa.apply(model, plan_of(model), "torch"):
        expected, twin = model(ids).logits, copy.deepcopy(model)
    assert torch.equal(twin(ids).logits, expected)


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (Rule(pattern="keydiff_window", alpha=128, beta=0), "keydiff_window with read 1"),
        (Rule(alpha=128, beta=0, read=0.5), "sink_window with read 0.5"),
    ],
)
def test_rules_that_need_keys_are_refused_by_name(model, rule, found):
    with pytest.raises(PlanError, match=f"layer 0 caches latent vectors: .*, found {found}"):
        Plan.from_rules(model, {}, defaults=rule)


def test_a_profile_measures_the_patterns_that_rules_may_have(model):
    info = ModelInfo.of(model)
    assert every(info) == (("sink_window", 64),)
    Settings((256,), variants=every(info)).check(model)
    with pytest.raises(MoaError, match="patterns of layers that cache latent vectors are sink_window, found keydiff"):
        Settings((256,)).check(model)
    with pytest.raises(MoaError, match="read all that they keep: leave --reads out"):
        Settings((256,), variants=every(info), reads=True).check(model)


def test_back_ends_that_cannot_attend_to_latents_are_refused_by_name(model, monkeypatch):
    less = replace(TORCH, can=tuple(ability for ability in TORCH.can if ability != "latent"))
    monkeypatch.setattr(attention, "find", lambda name: less)
    with pytest.raises(Unsupported, match="back-end torch cannot attend to latent vectors: choose reference, torch"):
        moa.apply(model, Plan.dense(model), "torch")
    assert "expand_kv" not in vars(model.model.layers[0].self_attn)


def test_modules_that_choose_keys_themselves_or_expand_otherwise_are_refused_by_name():
    model = make("DeepseekV3")
    own = model.model.layers[1].self_attn
    own.indexer = torch.nn.Identity()
    with pytest.raises(Unsupported, match="DeepseekV3Attention chooses the keys of each query itself, by an indexer"):
        moa.apply(model, Plan.dense(model))
    del own.indexer
    own.kv_b_proj = torch.nn.Linear(24, 4 * 28)
    with pytest.raises(Unsupported, match="DeepseekV3Attention expands latents with a bias"):
        moa.apply(model, Plan.dense(model))
