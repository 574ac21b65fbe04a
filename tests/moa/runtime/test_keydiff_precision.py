"""Rounding and sinks of other keys: whole models of three dtypes, long texts, every way to feed them.

What a sink holds follows from the keys that the model stored, exactly. Those keys differ a little between one pass,
chunks and steps, as the dense model's do: products round by the shape of a call.
"""

import copy

import pytest
import torch
from feeding import feed, padded
from transformers import DynamicCache

import moa
from moa import KVCache, Plan
from moa.kernels.sink_contents import history
from moa.plans.patterns import KeyDiffWindow
from moa.runtime.layer import PlanLayer

N, FIRST = 1230, 1100
WAYS = {"one pass": [N], "chunks": [137] * 8 + [N - 8 * 137], "steps": [FIRST] + [1] * (N - FIRST)}
LEFT = (0, 90)
"""Columns of padding before each text."""


@pytest.fixture
def fed(monkeypatch):
    """Logits of the last N - FIRST columns, and the keys [sequences, kv_heads, n, D] that each layer was given."""

    def run(model, cache, ids, news):
        given, theirs = {}, PlanLayer.update

        def update(self, k, v, *args, **kwargs):
            given.setdefault(id(self), []).append(k.clone())
            return theirs(self, k, v, *args, **kwargs)

        monkeypatch.setattr(PlanLayer, "update", update)
        logits = feed(model, cache, ids, news, padded(ids, [(left, ids.shape[1]) for left in LEFT]))
        monkeypatch.undo()
        return logits[:, FIRST:].double(), [torch.cat(k, 2) for k in given.values()]

    return run


@pytest.mark.parametrize(
    ("backend", "dtype"), [("torch", torch.bfloat16), ("numba", torch.float16), ("numba", torch.float32)]
)
def test_sinks_follow_stored_keys_and_logits_differ_by_the_model_s_rounding(tiny, tokens, fed, backend, dtype):
    """Two runs, each off by as much as the dense model in one pass, are twice that apart at most, in the mean."""
    model, ids = tiny(dtype=dtype), tokens(2, N)
    plan = Plan.from_rules(
        model, {1: [KeyDiffWindow(sink=128, alpha=320, beta=0), KeyDiffWindow(alpha=0, beta=0.125)]},
        defaults=KeyDiffWindow(alpha=128, beta=0),
    )  # fmt: skip
    with torch.no_grad():
        exact, here = (
            fed(x, DynamicCache(config=x.config), ids, [N])[0] for x in (copy.deepcopy(model).double(), model)
        )
        rounding = float((here - exact).abs().mean())
        assert rounding > 0
        one = None
        for news in WAYS.values():
            with moa.apply(model, plan, backend):
                cache = KVCache(plan)
                logits, keys = fed(model, cache, ids, news)
            held = []
            for layer, k in zip(cache.layers, keys, strict=True):
                for s, left in enumerate(LEFT):
                    for group in range(2):
                        size, edge = layer.sinks.sink(group), int(layer.sinks.folded[s, group])
                        mine, theirs = layer.sinks.position[s, group, :size], k[s, group : group + 1, left:]
                        assert torch.equal(mine, history("keydiff")(theirs, size, 64)[edge, 0])
                        held.append((mine, theirs))
            one = one or (logits, held)
            assert float((logits - one[0]).abs().mean()) <= 2 * rounding
            for (mine, k), (theirs, other) in zip(held, one[1], strict=True):
                assert torch.equal(mine, theirs) or not torch.equal(k, other)
