"""Provide `moa.bench_plan`, which compares time and memory of a plan and of the dense model on this machine."""

from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch

from moa.bench import timing
from moa.bench.filling import Context, filled, held_out
from moa.bench.timing import Times, alternate
from moa.hf.environment import environment
from moa.hf.load import Given, check_options, loaded
from moa.outputs import results, writable
from moa.plans.errors import MoaError
from moa.plans.plan import Plan, Predicted
from moa.plans.progress import Progress, silent
from moa.plans.replace import replace_json
from moa.runtime.applied import apply
from moa.runtime.variant import Variant, allocated_bytes

T = TypeVar("T")


def bench_plan(
    model: Given, plan: Plan | str | PathLike[str], *, lengths: Sequence[int] = (1024, 2048),
    batches: Sequence[int] = (1,), repeats: int = 3, backend: str | None = None, dtype: str = "auto",
    output: str | PathLike[str] | None = None, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Return times of prefill and decode steps of the dense model and of a plan, and allocated beside predicted bytes.

    Decode steps run on caches filled with random keys, or with those of a text where the plan reads less than it keeps.
    The dense model uses a DynamicCache, the plan a KVCache that grows, as `generate` does.

    Args:
        model: The model: its name, or what `moa.load_model` returned.
        plan: A plan, its file, or the name of a shipped one.
        lengths: Lengths to measure at, in tokens.
        batches: Batch sizes of decode steps.
        repeats: Number of times that the dense model and the plan take turns.
        backend: Back-end of the plan, None for the device's own.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        output: Results to write (.json), after each finished measurement.
        progress: Called after each measurement.

    Returns:
        JSON types: seconds and bytes by length, and by length and batch; None for what does not fit in memory.

    Raises:
        MoaError: Something cannot be measured, or a file must not be replaced.
        ModelMismatch: The plan was made for another model.
    """
    chosen = plan if isinstance(plan, Plan) else Plan.load(plan)
    if min(batches) < 1:
        raise MoaError(f"batches must be 1 or more, found {min(batches)}")
    path = None if output is None else Path(output)
    if path is not None:
        writable(path, "result of `moa bench`", results("model", "lengths"))
    named = "the plan" if isinstance(plan, Plan) else str(plan)
    check_options(model, {named: chosen.model}, lengths=lengths, backend=backend)
    network, tokenizer = loaded(model, dtype=dtype)
    keep: Callable[[dict[str, Any]], object] = partial(replace_json, path) if path else silent
    longest = max(lengths) + timing.STEPS + 1
    context = Context.read(network, held_out(tokenizer, longest).to(network.device)) if chosen.reads() else None
    return _measure(network, chosen, lengths, batches, repeats, backend, context, progress, keep)


def _measure(
    network: Any, plan: Plan, lengths: Sequence[int], batches: Sequence[int], repeats: int, backend: str | None,
    context: Context | None, progress: Progress, keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:  # fmt: skip
    """Return all figures; `keep` gets what was found so far after each measurement."""
    with apply(network, plan, backend) as applied:  # refuses what cannot run before anything is timed
        names = ", ".join(applied.backend)
    ways = {"dense": Variant(), "plan": Variant(plan, backend=backend)}
    nothing: list[float] = []
    vocabulary = network.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, max(lengths)), generator=torch.Generator().manual_seed(0)).to(network.device)
    for way in ways.values():  # warm up
        timing.prefill(network, way, ids[:, :128])
    done, total = 0, sum(lengths) * (1 + sum(batches))
    found: dict[str, Any] = {"model": plan.model.name, "environment": environment(network, names), "lengths": []}
    said = plan.predicted
    if said is not None and said.device is not None:
        found["predicted_for"] = {"device": said.device, "error": said.error or {}}
    for n in lengths:
        calls = {name: partial(timing.prefill, network, way, ids[:, :n]) for name, way in ways.items()}
        times = alternate({name: partial(_fitting, call, nothing) for name, call in calls.items()}, repeats)
        cell: dict[str, Any] = {
            "length": n, "density": plan.density(n), "read": plan.read_density(n),
            "prefill_kept": plan.prefill_fraction(n),
        }  # fmt: skip
        steps: list[dict[str, Any]] = []
        prefill = _json(times) | _said(said, "prefill_ms", n)
        found["lengths"].append(cell | {"prefill": prefill, "decode": steps})
        keep(found)
        progress(done := done + n, total, f"prefill of {n:,}")
        for batch in batches:
            allocated = {
                name: _fitting(partial(_allocated, network, way, n, batch), None) for name, way in ways.items()
            }
            calls = {
                name: partial(timing.decode, network, way, n, batch, context=context) for name, way in ways.items()
            }
            times = alternate({name: partial(_fitting, call, nothing) for name, call in calls.items()}, repeats)
            about = {
                "batch": batch, "read_bytes": plan.read_bytes(n, batch, network.dtype),
                "predicted": plan.kv_bytes(n, batch, network.dtype), "allocated": allocated,
            }  # fmt: skip
            steps.append(about | _json(times) | (_said(said, "decode_ms", n) if batch == 1 else {}))
            keep(found)
            progress(done := done + n * batch, total, f"decode at {n:,}, batch {batch}")
    return found


def _allocated(network: Any, way: Variant, length: int, batch: int) -> int:
    return allocated_bytes(filled(network, way, length, batch))


def _fitting(call: Callable[[], T], otherwise: T) -> T:
    """Return what `call` gives, or `otherwise` where the device's memory does not suffice."""
    try:
        return call()
    except torch.OutOfMemoryError:
        pass  # the memory of the call is free only after this block
    torch.cuda.empty_cache()
    return otherwise


def _said(predicted: Predicted | None, what: str, length: int) -> dict[str, float]:
    """Return the plan's own prediction, if it has one."""
    figures = getattr(predicted, what, None)
    if predicted is None or figures is None or length not in predicted.lengths:
        return {}
    return {"predicted_seconds": figures[predicted.lengths.index(length)] / 1e3}


def _json(times: dict[str, Times]) -> dict[str, Any]:
    return {name: t.summary() if t.seconds else None for name, t in times.items()}
