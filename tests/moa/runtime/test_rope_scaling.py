"""Rope scaling and sinks of other keys: one pass, chunks and steps, where the dense model gives one answer for all."""

import pytest
import torch
from transformers import DynamicCache

import moa
from moa import KVCache, Plan

LIMIT = 256
SCALED = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": LIMIT},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LIMIT,
    },
    "dynamic": {"factor": 4.0},
}
WAYS = [[431], [137, 1, 230, 63], [300, *[1] * 131]]


@pytest.fixture
def scaled(fresh):
    """Makes a model of a kind of scaling whose unscaled texts have 256 tokens."""

    def make(kind):
        rope = {"rope_type": kind, "rope_theta": 10000.0, **SCALED[kind]}
        return fresh(rope_parameters=rope, max_position_embeddings=LIMIT if kind == "dynamic" else 4 * LIMIT)

    return make


def feed(model, cache, ids, news):
    with torch.no_grad():
        return torch.cat([model(part, past_key_values=cache).logits for part in ids.split(news, 1)], 1)


@pytest.mark.parametrize("kind", [kind for kind in SCALED if kind != "dynamic"])
def test_every_way_gives_one_answer(scaled, keydiff_plan, tokens, oracle, kind):
    model, ids = scaled(kind), tokens(1, 431)
    plan = keydiff_plan(model, 1)
    with moa.apply(model, plan):
        found = [feed(model, KVCache(plan), ids, news)[0] for news in WAYS]
    for logits in found:
        torch.testing.assert_close(logits, oracle(model, plan, ids[0]), rtol=0, atol=1e-10)


def test_dynamic_scaling_up_to_its_limit(scaled, keydiff_plan, tokens, oracle):
    model, ids = scaled("dynamic"), tokens(1, LIMIT)
    plan = keydiff_plan(model, 1)
    with moa.apply(model, plan):
        found = [feed(model, KVCache(plan), ids, news)[0] for news in ([LIMIT], [137, 1, 118], [200, *[1] * 56])]
    for logits in found:
        torch.testing.assert_close(logits, oracle(model, plan, ids[0]), rtol=0, atol=1e-10)


@pytest.mark.parametrize("news", WAYS[1:])
def test_dynamic_scaling_beyond_it_is_the_dense_model_s(scaled, keydiff_plan, tokens, news):
    """Which gives other logits in parts than in one pass. In equal calls all caches and back-ends agree."""
    ids = tokens(1, 431)

    def run(plan, backend, cache, news):
        model = scaled("dynamic")  # a new one: it remembers the longest text that it has seen
        given = DynamicCache(config=model.config) if cache is None else cache
        if plan is None:
            return feed(model, given, ids, news)
        with moa.apply(model, plan, backend):
            return feed(model, given, ids, news)

    model = scaled("dynamic")
    whole, plan = Plan.dense(model), keydiff_plan(model, 1)
    dense, pass_ = (run(None, None, None, x) for x in (news, [431]))
    assert (dense - pass_)[:, LIMIT:].abs().mean() > 1e-3 * pass_.std()
    torch.testing.assert_close(run(whole, "numba", KVCache(whole), news), dense, rtol=0, atol=1e-10)
    found = run(plan, "numba", KVCache(plan), news)
    for backend, cache in (("reference", None), ("torch", KVCache(plan)), ("numba", None)):
        torch.testing.assert_close(run(plan, backend, cache, news), found, rtol=0, atol=1e-10)
