"""A decode step with a fixed cache is one graph: nothing in it reads a value back from the device."""

import pytest
import torch
from feeding import positions_of
from torch._dynamo.utils import counters

import moa
from moa import KVCache


@pytest.mark.parametrize("family", ["Llama", "Gemma3"])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.full)])
def test_decode_step_compiles_whole_and_once(fresh, random_plan, tokens, family, compiler):
    model = fresh(family, dtype=torch.float32)
    plan, ids, mask = random_plan(model, 1), tokens(2, 230), torch.ones(2, 230, dtype=torch.int64)
    mask[1, :80] = 0
    positions = positions_of(mask)
    torch._dynamo.reset()
    counters.clear()
    with moa.apply(model, plan), torch.no_grad():
        caches = KVCache(plan, max_length=300), KVCache(plan, max_length=300)
        for cache in caches:
            model(ids[:, :187], attention_mask=mask[:, :187], position_ids=positions[:, :187], past_key_values=cache)
        steps = model.forward, torch.compile(model.forward, backend=compiler, fullgraph=True)
        for end in range(188, 200):  # crosses a block
            logits = []
            for step, cache in zip(steps, caches, strict=True):
                inputs = model.prepare_inputs_for_generation(
                    ids[:, :end],
                    next_sequence_length=1,
                    past_key_values=cache,
                    attention_mask=mask[:, :end],
                    position_ids=positions[:, :end],
                    use_cache=True,
                )
                logits.append(step(**inputs).logits)
            torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    # transformers' own sliding layers count on the host, which costs one graph more
    assert counters["stats"]["unique_graphs"] == (2 if family == "Gemma3" else 1)
    assert not counters["graph_break"]
    assert int(caches[1].get_seq_length()) == 199
    assert caches[1].lengths.tolist() == [199, 119]


def test_past_the_end_of_a_fixed_cache_is_noticed_in_the_graph(fresh, random_plan, tokens):
    model = fresh(dtype=torch.float32)
    plan, ids = random_plan(model, 1), tokens(1, 66)
    torch._dynamo.reset()
    with moa.apply(model, plan), torch.no_grad():
        cache = KVCache(plan, max_length=65)
        model(ids[:, :64], past_key_values=cache)
        step = torch.compile(model.forward, backend="eager", fullgraph=True)
        step(input_ids=ids[:, 64:65], past_key_values=cache)
        with pytest.raises(RuntimeError, match="longer than max_length"):
            step(input_ids=ids[:, 65:66], past_key_values=cache)
