"""A float16 model whose keys have biases, so that scores pass the type's range; and the same by autocast."""

from contextlib import nullcontext

import pytest
import torch

import moa
from moa import KVCache, Plan


@pytest.fixture(scope="module")
def biased(fresh):
    """Makes a Qwen2 of a type, the same weights every time; a token's q·k with itself is 541,696, scaled 67,712."""

    def make(dtype):
        model = fresh("Qwen2", hidden_size=256, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                torch.nn.init.constant_(projection.bias, 92.0)
                projection.weight.data.mul_(0.2)
        return model.to(dtype)

    return make


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"])
@pytest.mark.parametrize("autocast", [False, True])
def test_scores_beyond_float16_are_those_of_the_dense_model(biased, tokens, backend, autocast):
    ids, model = tokens(1, 100), biased(torch.float32 if autocast else torch.float16)
    plan = Plan.dense(model)
    around = torch.autocast("cpu", torch.float16) if autocast else nullcontext()
    with torch.no_grad():
        exact = biased(torch.float64)(ids).logits
        with around:
            dense = model(ids).logits
            with moa.apply(model, plan, backend):
                cache = KVCache(plan)
                parts = [model(part, past_key_values=cache).logits for part in ids.split([90, 1, 8, 1], 1)]
                uncached = model(ids, use_cache=False).logits
    error = (dense - exact).abs().max()
    for found in (torch.cat(parts, 1), uncached):
        assert (found - exact).abs().max() <= 2 * error  # of the same rounding; NaN is not
