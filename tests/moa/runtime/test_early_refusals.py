"""What a model with windows or states would get wrong is refused in one line, before a cache is spent on it."""

from typing import Any

import pytest
import torch
from feeding import feed
from hybrids import FAMILIES, VOCABULARY, made, make
from torch import Tensor
from transformers import DynamicCache

import moa
from moa import KVCache, Plan
from moa.plans.errors import Unsupported
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.recorder import recording

WINDOWS = {"Llama4Text": "attention_chunk_size", "Lfm3": "sliding_window"}
WINDOWED = sorted(WINDOWS.keys() & FAMILIES.keys())
STATES = ["Qwen3_5Text", "Lfm2", "Bamba"]


def ids_of(batch: int, n: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, n), generator=torch.Generator().manual_seed(n))


def whole_windowed(family: str) -> Any:
    """A model whose windows are as long as the longest text that it is for, and so count as none."""
    return make(family, max_position_embeddings=64, **{WINDOWS[family]: 64})


@torch.no_grad()
@pytest.mark.parametrize("family", WINDOWED)
def test_a_text_longer_than_a_window_that_counts_as_none(family):
    model, ids = whole_windowed(family), ids_of(1, 100)
    expected = model(ids[:, :64], use_cache=False).logits
    plan = Plan.dense(model)
    assert plan.model.sliding is None
    with moa.apply(model, plan, "torch"):
        torch.testing.assert_close(feed(model, KVCache(plan), ids, [60, 4]), expected, rtol=0, atol=1e-8)
        with pytest.raises(Unsupported, match=r"100 tokens under a plan: .* a window of 64"):
            model(ids, use_cache=False)
        for cache in (KVCache(plan), KVCache(plan, max_length=100), DynamicCache(config=model.config)):
            with pytest.raises(Unsupported, match=r"65 tokens under a plan: .* a window of 64"):
                feed(model, cache, ids, [60, 4, 1])


@pytest.mark.parametrize("family", WINDOWED)
def test_a_profile_of_texts_longer_than_a_window_that_counts_as_none(family):
    model = whole_windowed(family)
    with (
        recording(model, [("sink_window", 64)]),
        pytest.raises(Unsupported, match=r"100 tokens under a plan: .* a window of 64"),
    ):
        run_backward(model, whole_text(ids_of(1, 100)[0].tolist()), "given", "nll", torch.Generator())


def caches(model: Any, plan: Plan) -> dict[str, Any]:
    return {
        "growing": KVCache(plan), "fixed": KVCache(plan, max_length=60), "stock": DynamicCache(config=model.config)
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["growing", "fixed", "stock"])
@pytest.mark.parametrize("family", [*STATES, "Llama4Text", "GPTBigCode"])
def test_another_batch_than_the_cache_holds(family, kind):
    model, ids = made(family), ids_of(2, 60)
    plan = Plan.dense(model)
    expected = feed(model, DynamicCache(config=model.config), ids, [40, 10])
    with moa.apply(model, plan, "torch"):
        cache = caches(model, plan)[kind]
        feed(model, cache, ids, [40])
        for other in (ids[:1, 40:50], ids_of(3, 10)):
            with pytest.raises(Unsupported, match=f"the cache holds a batch of 2, the model got {len(other)}"):
                model(other, past_key_values=cache, position_ids=torch.arange(40, 50)[None])
        last = model(ids[:, 40:50], past_key_values=cache, position_ids=torch.arange(40, 50)[None]).logits
        torch.testing.assert_close(last, expected[:, 40:], rtol=0, atol=1e-8)  # those calls have left no trace
        if kind == "fixed":
            cache.reset()  # keeps its memory, for a batch of this size
            with pytest.raises(Unsupported, match="the cache holds a batch of 2, the model got 1"):
                model(ids[:1, :40], past_key_values=cache)
        if (family, kind) == ("Llama4Text", "fixed"):  # whose masks transformers 5.17 cannot make in advance
            return
        prefilled = caches(model, plan)[kind]
        feed(model, prefilled, ids[:1], [39])
        with pytest.raises(Unsupported, match="the cache holds a batch of 1, the model got 2"):
            model.generate(ids[:1, :40], past_key_values=prefilled, num_return_sequences=2, do_sample=True)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["growing", "fixed"])
@pytest.mark.parametrize("family", [*STATES, "Llama4Text"])
@pytest.mark.parametrize("held", [0, 30])
def test_a_call_that_is_refused_for_its_mask_leaves_the_cache_as_it_was(family, kind, held):
    model, ids = made(family), ids_of(2, 50)
    plan = Plan.dense(model)
    expected = feed(model, DynamicCache(config=model.config), ids, [held or 10, 10])
    with moa.apply(model, plan, "torch"):
        cache = caches(model, plan)[kind]
        if held:
            feed(model, cache, ids, [held])
        new = ids[:, held : held + 10]
        where = {"past_key_values": cache, "position_ids": torch.arange(held, held + 10)[None]}
        for mask in (torch.ones(2, 7).long(), torch.ones(1, held + 10).long(), torch.ones(2, 1, 10, held + 10)):
            with pytest.raises(Unsupported):
                model(new, attention_mask=mask, **where)
        found = model(new, attention_mask=torch.ones(2, held + 10).long(), **where).logits
        torch.testing.assert_close(found, expected[:, held : held + 10], rtol=0, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("family", STATES)
def test_a_cache_that_was_made_without_the_config(family):
    model = made(family)
    with (
        moa.apply(model, Plan.dense(model), "torch"),
        pytest.raises(
            Unsupported, match=r"a cache whose layers are not the model's.*DynamicCache\(config=model.config\)"
        ),
    ):
        model(ids_of(1, 30), past_key_values=DynamicCache())


@torch.no_grad()
@pytest.mark.parametrize("family", WINDOWED)
def test_drafts_beside_a_fixed_cache_from_which_no_tokens_can_be_taken_back(family):
    model, ids = made(family), ids_of(1, 40)
    plan = Plan.dense(model)
    calls: list[int] = []
    with moa.apply(model, plan, "torch"):
        hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(Unsupported, match=r"assisted generation .*max_length .pass one without.*has no crop"):
            model.generate(
                ids, prompt_lookup_num_tokens=4, past_key_values=KVCache(plan, max_length=60), max_new_tokens=5,
            )  # fmt: skip
        hook.remove()
    assert not calls
