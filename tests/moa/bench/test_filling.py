"""Caches filled without a prefill are as full as a prefill leaves them, and go on decoding."""

import pytest
import torch

from moa import KVCache, Plan
from moa.bench.filling import Context, fill, filled
from moa.bench.timing import decode
from moa.plans.patterns import Rule
from moa.runtime.variant import Variant, allocated_bytes


@pytest.fixture
def model(tiny):
    return tiny(dtype=torch.float32)


@pytest.mark.parametrize("planned", [False, True])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_filled_cache_is_as_a_prefill_leaves_it(model, random_plan, tokens, planned, fixed):
    variant = Variant(random_plan(model, 3) if planned else None, fixed=fixed)
    filled, run = variant.cache(model, 301), variant.cache(model, 301)
    fill(filled, model, 300, batch=2)
    with variant.on(model), torch.no_grad():
        model(tokens(2, 300), past_key_values=run)
        assert allocated_bytes(filled) == allocated_bytes(run) > 0
        for cache in (filled, run):
            assert int(cache.get_seq_length()) == 300
        logits = model(tokens(2, 1), past_key_values=filled).logits
    assert logits.isfinite().all()
    assert int(filled.get_seq_length()) == 301


@pytest.mark.parametrize("fixed", [False, True])
def test_sinks_of_other_keys_are_filled_without_a_prefill(model, keydiff_plan, tokens, monkeypatch, fixed):
    variant = Variant(keydiff_plan(model, 3), fixed=fixed)
    filled, run = variant.cache(model, 330), variant.cache(model, 330)
    with variant.on(model), torch.no_grad():
        model(tokens(2, 300), past_key_values=run)
        monkeypatch.setattr("moa.kernels.dispatch.prefill", lambda *_, **__: pytest.fail("prefilled"))
        fill(filled, model, 300, batch=2)
        assert allocated_bytes(filled) == allocated_bytes(run) > 0
        for _ in range(25):  # over the end of a block, where keys move to the sinks
            for cache in (filled, run):
                assert model(tokens(2, 1), past_key_values=cache).logits.isfinite().all()
    moving = [(a.sinks, b.sinks) for a, b in zip(filled.layers, run.layers, strict=True) if a.sinks is not None]
    assert moving
    for mine, theirs in moving:
        assert (mine.folded == theirs.folded)[:, mine.groups].all()
        assert mine.folded[:, mine.groups].max() > 1


def test_filled_keys_are_random_and_alike_in_every_sequence(model, random_plan):
    cache = KVCache(random_plan(model, 3))
    fill(cache, model, 130, batch=2)
    store = cache.layers[0].store
    first, second = (store.k[store.base[s, 0] :][:64] for s in range(2))
    assert torch.equal(first, second)
    assert first.std() > 0.5


@torch.no_grad()
@pytest.mark.parametrize("fixed", [False, True])
def test_a_text_chooses_the_pages_that_its_prefill_chooses(model, tokens, fixed):
    """Where every group keeps all, a prefill under the plan leaves the dense model's keys."""
    plan, ids = Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=1, read=1 / 4)), tokens(1, 306)
    context, variant = Context.read(model, ids), Variant(plan, fixed=fixed)
    cache, run = (variant.cache(model, 306) for _ in range(2))
    fill(cache, model, 300, batch=2, context=context)
    random = filled(model, variant, 300, 2, room=306)
    with variant.on(model):
        model(ids[:, :300].expand(2, -1), past_key_values=run)
        step = ids[:, 300:301].expand(2, -1)
        found, expected, other = (model(step, past_key_values=c).logits for c in (cache, run, random))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert (other - expected).abs().max() > 1e-3
    assert len(decode(model, variant, 300, 2, context=context)) == 5
