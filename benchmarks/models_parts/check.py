"""Check that a model under a plan computes what the plan says, by its own eager attention with written-out masks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

import moa
from moa.hf.attention import attention_modules, decoder_of
from moa.hf.calls import parts
from moa.hf.logits import hidden_of, logits_of
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan, Rule
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.estimate import peak_bytes
from moa.profiler.recorder import recording

TOKENS = 270
CHUNKS = (70, 1, 1, 64, 130, 4)
PADDING = 23
NEW = 6
CLOSE = 1e-8
"""Largest difference in float64."""
CLOSE_FLOAT32 = 1e-4
EXACT = "dense plan", "no cache", "one pass", "chunks"

RULES = (
    Rule(sink=64, alpha=64, beta=0.0),
    Rule(sink=128, alpha=0, beta=0.5),
    Rule(sink=64, alpha=-150, beta=0.75),
    Rule(sink=64, alpha=0, beta=1.0),
)


def random_plan(model: Any) -> Plan:
    rng, info = np.random.default_rng(0), Plan.dense(model).model
    groups = {layer: [RULES[i] for i in rng.integers(len(RULES), size=info.kv_heads)] for layer in info.ruled_layers}
    return Plan.from_rules(model, groups | {info.ruled_layers[0]: [RULES[0]] * info.kv_heads}, defaults=RULES[0])


def written_out(plan: Plan, layer: int, n: int) -> Tensor:
    """Return which keys a layer's queries see, bool [1, kv_heads, n, n], from what the plan says of each length."""
    spans = np.stack([plan.spans(i + 1)[layer] for i in range(n)])  # [n, kv_heads]
    sink = np.array([rule.sink for rule in plan.groups[layer]])
    i, j = np.arange(n)[:, None, None], np.arange(n)[None, :, None]
    seen = (j <= i) & ((spans[:, None] == i + 1) | (j < sink) | (j > i - (spans[:, None] - sink)))
    return torch.from_numpy(seen).permute(2, 0, 1)[None]


def _masked(
    plan: Plan, layers: dict[Any, int], module: Any, q: Tensor, k: Tensor, v: Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """Return plain attention in the model's own dtype; eager attention takes the softmax in float32."""
    heads, mask = q.shape[1] // k.shape[1], attention_mask
    if (layer := plan.model.sources[layers[module]]) in plan.model.ruled_layers:
        mask = written_out(plan, layer, k.shape[2])[:, :, -q.shape[2] :].repeat_interleave(heads, 1)
    k, v = (x.repeat_interleave(heads, 1) for x in (k, v))
    cap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
    if cap is not None or sinks is not None:
        scores = q @ k.mT * kwargs["scaling"]
        scores = (scores if cap is None else cap * (scores / cap).tanh()).masked_fill(~mask, -torch.inf)
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(*scores.shape[:-1], 1)], -1)
        return (scores.softmax(-1)[..., : k.shape[2]] @ v).transpose(1, 2), None
    return scaled_dot_product_attention(q, k, v, mask, scale=kwargs.get("scaling")).transpose(1, 2), None


def _every_mask(*args: Any, **kwargs: Any) -> Any:
    return sdpa_mask(*args, **kwargs | {"allow_is_causal_skip": False})


def masked_logits(model: Any, plan: Plan, ids: Tensor, chunks: bool = False) -> Tensor:
    """Return the logits [n, vocabulary] of a model that knows of no plan, with each head's mask written out."""
    layers = {module: layer for layer, module in attention_modules(model, plan.model).items()}
    AttentionInterface.register("written_out", partial(_masked, plan, layers))
    AttentionMaskInterface.register("written_out", _every_mask)
    return attending_by(model, "written_out", ids, chunks)


def attending_by(model: Any, name: str, ids: Tensor, chunks: bool = False) -> Tensor:
    """Return the logits under another attention function, in one pass or in chunks."""
    decoder = decoder_of(model, attention_modules(model, ModelInfo.of(model)))
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(name)
    try:
        return _in_chunks(model, ids, DynamicCache(config=model.config)) if chunks else _logits(model, ids)
    finally:
        decoder.set_attn_implementation(before)


def _logits(model: Any, ids: Tensor, **kwargs: Any) -> Tensor:
    return model(input_ids=ids, **{"use_cache": False, **kwargs}).logits[0]


def _in_chunks(model: Any, ids: Tensor, cache: Any) -> Tensor:
    """Return the logits [n, vocabulary], in as many calls as `CHUNKS`, or as the model needs."""
    found, held = [], 0
    for chunk in ids.split(CHUNKS, 1):
        for part, where in parts(model, chunk, held):
            found.append(_logits(model, part, past_key_values=cache, use_cache=True, **where))
        held += chunk.shape[1]
    return torch.cat(found)


def _generate(model: Any, ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return the tokens of the first text and their logits [new, vocabulary]."""
    out = model.generate(
        input_ids=ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **kwargs,
    )  # fmt: skip
    return out.sequences[0, -NEW:], torch.stack(out.logits)[:, 0]


@torch.no_grad()
def check(model: Any, stage: Callable[[str], None]) -> dict[str, float]:
    """Return the largest difference of each check.

    Args:
        model: In float64.
        stage: Told what comes next.

    Raises:
        AssertionError: One is too large.
    """
    found: dict[str, float] = {}

    def compare(name: str, a: Tensor, b: Tensor, close: float = CLOSE) -> None:
        found[name] = float((a.double() - b.double()).abs().max())
        assert found[name] <= close, f"{name}: {found[name]:.1e} from what it should be"

    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 60, (1, TOKENS)))
    stage("plan")
    plan, dense = random_plan(model), Plan.dense(model)
    stage("apply")
    moa.apply(model, dense, "torch").remove()
    stage("the bare model")
    bare = _logits(model, ids)
    stage("dense plan")
    with moa.apply(model, dense, "torch"):
        under_dense = _logits(model, ids)
    stage("reference")
    own = float((masked_logits(model, dense, ids) - bare).abs().max())  # of soft-caps or sinks in float32
    close = max(CLOSE, min(10 * own, CLOSE_FLOAT32))
    stage("dense plan")
    usual, recomputed = _generate(model, ids), _generate(model, ids, use_cache=False)
    rounding = _in_chunks(model, ids, DynamicCache(config=model.config)) - bare  # of what is always in float32
    drift = max(float(x.abs().max()) for x in (rounding, usual[1] - recomputed[1]))
    near = max(CLOSE_FLOAT32, min(10 * drift, 100 * CLOSE_FLOAT32))
    compare("dense plan", under_dense, bare, close)
    with moa.apply(model, dense, "torch"):
        compare("dense generate", _generate(model, ids)[1], usual[1], CLOSE_FLOAT32)
    stage("reference")
    compare("eager", attending_by(model, "eager", ids), bare, CLOSE_FLOAT32)
    compare("dense reference", masked_logits(model, dense, ids), bare, close)
    expected = masked_logits(model, plan, ids)
    assert (expected - bare).abs().max() > CLOSE_FLOAT32, "the plan changes nothing, so nothing is shown"
    with moa.apply(model, plan, "torch"):
        stage("no cache")
        compare("no cache", _logits(model, ids), expected)
        stage("one pass")
        compare("one pass", _logits(model, ids, past_key_values=moa.KVCache(plan), use_cache=True), expected)
        stage("chunks")
        found_in_chunks = _in_chunks(model, ids, moa.KVCache(plan))
    in_chunks = masked_logits(model, plan, ids, chunks=True)
    compare("chunks", found_in_chunks, in_chunks, max(CLOSE, min(100 * drift, CLOSE_FLOAT32)))
    with moa.apply(model, plan, "torch"):
        stage("generate")
        alone = _generate(model, ids)
        without = _generate(model, ids, use_cache=False)
        compare("generate", alone[1], without[1], near)  # which gives logits in float32
        assert torch.equal(alone[0], without[0]), "generate: other tokens than without a cache"
        stage("left padding")
        other = torch.from_numpy(np.random.default_rng(1).integers(3, 60, (1, TOKENS + PADDING)))
        batch = torch.cat([torch.nn.functional.pad(ids, (PADDING, 0)), other])
        mask = torch.ones_like(batch)
        mask[0, :PADDING] = 0
        padded = _generate(model, batch, attention_mask=mask)
        compare("left padding", padded[1], alone[1], near)
        assert torch.equal(padded[0], alone[0]), "left padding: other tokens than alone"
    stage("profile")
    compare("head", logits_of(model, hidden_of(model, ids)), bare, CLOSE_FLOAT32)
    with torch.enable_grad(), recording(model, [("sink_window", 64)]) as recorder:
        run_backward(model, whole_text(ids[0].tolist()), "given", "nll", torch.Generator())
        assert recorder.take().isfinite().all(), "profile: a table that is not finite"
    assert peak_bytes(model, 1024) > 0
    compare("left as it was", _logits(model, ids), bare, 0.0)
    return found
