"""Models with a soft-cap or learned sinks under a plan."""

import pytest
import torch
import transformers
from feeding import feed, padded
from hybrids import FAMILIES, SINGLE, Oracle, ids_of, make, plan_of
from transformers import DynamicCache

import moa
from moa import KVCache, Plan

CHUNKS = [70, 1, 1, 64, 70, 4]
MODIFIED = sorted({"GptOss", "GraniteSWA", "Gemma2"} & FAMILIES.keys())
"""Families with a soft-cap or learned sinks, in layers with windows of the model's own too."""
SLIDING = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


@torch.no_grad()
@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
@pytest.mark.parametrize("family", MODIFIED)
def test_soft_caps_and_learned_sinks_by_each_back_end(family, backend):
    """A dense plan gives what the model's own code gives, a random one what masks that are written out give."""
    model, ids = make(family, **SLIDING), ids_of(2, sum(CHUNKS))
    for way in (lambda _: model(ids, use_cache=False).logits, lambda cache: feed(model, cache, ids, CHUNKS)):
        expected = way(DynamicCache(config=model.config))
        for plan, close in ((Plan.dense(model), SINGLE.get(family, 1e-8)), (plan_of(model), 1e-8)):
            if close == 1e-8:
                with Oracle(model, plan):
                    expected = way(DynamicCache(config=model.config))
            with moa.apply(model, plan, backend):
                torch.testing.assert_close(way(KVCache(plan)), expected, rtol=0, atol=close)


@torch.no_grad()
@pytest.mark.parametrize("family", MODIFIED)
def test_soft_caps_and_learned_sinks_in_single_precision(family):
    model, ids = make(family, **SLIDING).float(), ids_of(2, sum(CHUNKS))
    mask, plan = padded(ids, [(23, sum(CHUNKS)), (0, sum(CHUNKS))]), Plan.dense(model)
    expected = feed(model, DynamicCache(config=model.config), ids, CHUNKS, mask) * mask[..., None]
    options = {"attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "num_beams": 2}
    tokens = model.generate(ids, **options)
    with moa.apply(model, plan):
        found = feed(model, KVCache(plan), ids, CHUNKS, mask) * mask[..., None]
        assert torch.equal(model.generate(ids, **options), tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@torch.no_grad()
def test_layers_without_rules_keep_a_soft_cap_that_torch_s_attention_would_drop(monkeypatch):
    """Transformers 5.17 lets Gemma-2 attend so, and drops it in silence; 5.23 would raise an error."""
    model, ids = make("Gemma2", **SLIDING), ids_of(1, 100)
    expected = model(ids).logits
    monkeypatch.setattr(transformers.Gemma2PreTrainedModel, "_supports_sdpa", True)
    model.set_attn_implementation("sdpa")
    with moa.apply(model, Plan.dense(model), "torch"):
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=SINGLE["Gemma2"])
