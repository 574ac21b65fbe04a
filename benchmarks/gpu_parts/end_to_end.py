"""Time decoding with whole models of random weights, under a plan and dense, at the largest batch that fits."""

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gpu_parts.measure import Bench, Call, Row

SHAPES = {
    "Llama-3-8B": {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "rope_theta": 500000.0},
    "Llama-2-7B": {"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000, "rope_theta": 10000.0},
}
DENSITIES = (1.0, 0.5, 0.25)
RESERVE = 4e9
"""Bytes left for activations and the allocator."""
STEPS = 64
"""Room for new tokens beside the context; fewer are generated."""


def run(bench: Bench, report: dict[str, Any]) -> Iterator[Row]:
    """Yield rows by model, length and way to hold keys."""
    for name in ("Llama-3-8B",) if bench.dry else SHAPES:
        if not bench.has_time(name):
            continue
        model = build(bench, name)
        for length in (320,) if bench.dry else (16384, 4096):
            dense: dict[str, float] = {}
            ways = ["dense DynamicCache", "dense StaticCache, graph", *(f"plan {d}, graph" for d in DENSITIES)]
            for way in ways:
                measured = partial(measure, bench, model, name, length, way)
                for row in bench.cell(f"{name} {length} {way}", lambda: [measured()]):
                    if way.startswith("dense") and isinstance(row["tokens/s"], float):
                        dense[way] = row["tokens/s"]
                    elif isinstance(row["tokens/s"], float):
                        row |= {f"over {other}": row["tokens/s"] / base for other, base in dense.items()}
                    yield row
        measured = model = None
        gc.collect()


def build(bench: Bench, name: str) -> Any:
    """Return the model, made on the device; it is tiny in a dry run."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = dict(SHAPES[name])
    theta = shape.pop("rope_theta")
    size = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    if bench.dry:
        size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape = {"num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100}
    config = LlamaConfig(
        **size, **shape, max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": theta},
        dtype=torch.bfloat16,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with bench.device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def measure(bench: Bench, model: Any, name: str, length: int, way: str) -> Row:
    """Return the milliseconds per step and the tokens per second of one way to hold keys."""
    import moa

    config = model.config
    plan = _plan(model, length, float(way.split()[1].rstrip(","))) if way.startswith("plan") else None
    each = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * (length + STEPS)
    if plan is not None:
        each = plan.kv_bytes(length + STEPS, dtype="bfloat16")
    taken = each * (1.1 if "Dynamic" in way else 1.0)
    if "Static" in way:  # transformers 5.17 expands a layer's keys and values to all query heads
        taken += 2 * 2 * config.num_attention_heads * config.head_dim * (length + STEPS)
    batch = 2 if bench.dry else int((bench.free() - RESERVE) // taken)
    row = {"model": name, "length": length, "way": way, "batch": batch, "KV GB": batch * each / 1e9}
    if not batch:
        return row | {"tokens/s": "does not fit"}
    applied = moa.apply(model, plan, backend="triton") if plan is not None else None
    cache = _cache(bench, model, plan, length, batch, way)
    step = _step(bench, model, cache, length, batch)
    try:
        with torch.no_grad():
            row["peak GB"] = bench.peak(step) / 1e9 + row["KV GB"]
            call = bench.graph(step) if way.endswith("graph") else step
            seconds = bench.time({way: call}, cold=False)[way]
    finally:
        if applied is not None:
            applied.remove()
        del cache, step
        gc.collect()
    return row | {"step ms": 1e3 * seconds, "tokens/s": batch / seconds}


def _plan(model: Any, length: int, density: float) -> Any:
    """Return a plan of full heads and windows: it is the least regular of its density, so the hardest to balance."""
    from moa.plans.model import ModelInfo
    from moa.plans.plan import Plan

    info = ModelInfo.from_config(model.config)
    if density == 1.0:
        return Plan.dense(info)
    window = length // 16
    share = (density - window / length) / (1 - window / length)
    heads = [(layer, head) for layer in range(info.layers) for head in range(info.kv_heads)]
    full = [at for i, at in enumerate(heads) if int((i + 1) * share) > int(i * share)]
    return Plan.two_group(info, full, window)


def _cache(bench: Bench, model: Any, plan: Any, length: int, batch: int, way: str) -> Any:
    """Return a cache that holds `length` random keys of each sequence."""
    from transformers import DynamicCache, StaticCache

    import moa

    config = model.config
    shape = (batch, config.num_key_value_heads, length, config.head_dim)
    if "Dynamic" in way:
        cache = DynamicCache()
        for layer in range(config.num_hidden_layers):
            cache.update(*(torch.randn(shape, dtype=torch.bfloat16, device=bench.device) for _ in range(2)), layer)
        return cache
    one = torch.zeros(
        (batch, config.num_key_value_heads, 1, config.head_dim), dtype=torch.bfloat16, device=bench.device
    )
    if plan is None:
        cache = StaticCache(config=config, max_cache_len=length + STEPS)
        for layer in cache.layers:
            layer.lazy_initialization(one, one)
            layer.keys.normal_()
            layer.values.normal_()
            layer.cumulative_length.fill_(length)
        return cache
    cache = moa.KVCache(plan, max_length=length + STEPS)
    for layer in cache.layers:
        layer.lazy_initialization(one, one)
        layer.store.k.normal_()
        layer.store.v.normal_()
        layer.batch.lengths.fill_(length)
        layer.batch.width.fill_(length)
    return cache


def _step(bench: Bench, model: Any, cache: Any, length: int, batch: int) -> Call:
    tokens = torch.zeros((batch, 1), dtype=torch.int64, device=bench.device)
    positions = torch.full((batch, 1), length, dtype=torch.int64, device=bench.device)

    def step() -> Any:
        logits = model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True).logits
        positions.add_(1)  # the cache goes on too
        return logits

    return step
