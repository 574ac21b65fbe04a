"""`moa bench MODEL --plan PLAN`: time and memory of a plan on this machine, beside the dense model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.table import Table

    from moa.plans.plan import Plan, Predicted
    from moa.timing import Times, Variant

FULL = "does not fit"
T = TypeVar("T")


def command(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")],
    plan: Annotated[str, typer.Option(help="Plan file or name of a shipped plan.")],
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, tokens.")] = "1024,2048",
    batches: Annotated[str, typer.Option(help="Batch sizes of decode steps.")] = "1",
    repeats: Annotated[int, typer.Option(help="Times that dense and plan take turns.", min=1)] = 3,
    backend: Annotated[str | None, typer.Option(help="reference, torch, numba, triton; else the device's own.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results to write (.json).")] = None,
) -> None:
    """Time prefill and decode steps of the dense model and of a plan in turn, predicted bytes beside allocated.

    Decode steps run on caches filled with random keys. The dense model uses a DynamicCache, the plan a KVCache that
    grows, as `generate` does. With -o, OUTPUT is written after each finished measurement.
    """
    from rich.console import Console

    from moa.cli.common import Bar, numbers
    from moa.load import check_options, load_model
    from moa.outputs import results, writable
    from moa.plans.plan import Plan
    from moa.plans.replace import replace_json

    chosen, sizes, counts = Plan.load(plan), numbers("lengths", lengths), numbers("batches", batches)
    if counts[0] < 1:
        raise MoaError(f"batches must be 1 or more, found {counts[0]}")
    if output is not None:
        writable(output, "result of `moa bench`", results("backend", "lengths"))
    check_options(model, {plan: chosen.model}, lengths=sizes, backend=backend)
    network, _ = load_model(model, dtype=dtype)
    keep: Callable[[dict[str, Any]], object] = partial(replace_json, output) if output else lambda _found: None
    with Bar("measuring") as progress:
        found = measure(network, chosen, sizes, counts, repeats, backend, progress, keep)
    console = Console(soft_wrap=True)
    console.print(*tables(found), sep="\n")
    if output is not None:
        Console(stderr=True, soft_wrap=True).print(f"wrote {output}")


def measure(
    network: Any,
    plan: "Plan",
    lengths: tuple[int, ...],
    batches: tuple[int, ...],
    repeats: int,
    backend: str | None,
    progress: Any,
    keep: Callable[[dict[str, Any]], object],
) -> dict[str, Any]:
    """Seconds and bytes by length, and by length and batch, in JSON types; None for what does not fit in memory.

    `keep` gets what was found so far after each measurement.
    """
    import torch

    from moa import timing
    from moa.applied import apply
    from moa.timing import Variant, alternate

    with apply(network, plan, backend) as applied:  # refuses what cannot run before anything is timed
        names = ", ".join(applied.backend)
    ways = {"dense": Variant(), "plan": Variant(plan, backend=backend)}
    nothing: list[float] = []
    vocabulary = network.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, max(lengths)), generator=torch.Generator().manual_seed(0)).to(network.device)
    for way in ways.values():  # warm up
        timing.prefill(network, way, ids[:, :128])
    done, total = 0, sum(lengths) * (1 + sum(batches))
    found: dict[str, Any] = {"model": plan.model.name, "backend": names, "dtype": str(network.dtype), "lengths": []}
    said = plan.predicted
    if said is not None and said.device is not None:
        found["predicted_for"] = {"device": said.device, "error": said.error or {}}
    for n in lengths:
        calls = {name: partial(timing.prefill, network, way, ids[:, :n]) for name, way in ways.items()}
        times = alternate({name: partial(_fitting, call, nothing) for name, call in calls.items()}, repeats)
        cell: dict[str, Any] = {"length": n, "density": plan.density(n), "prefill_kept": plan.prefill_fraction(n)}
        steps: list[dict[str, Any]] = []
        prefill = _json(times) | _said(said, "prefill_ms", n)
        found["lengths"].append(cell | {"prefill": prefill, "decode": steps})
        keep(found)
        progress(done := done + n, total, f"prefill of {n:,}")
        for batch in batches:
            held = {name: _fitting(partial(_held, network, way, n, batch), None) for name, way in ways.items()}
            calls = {name: partial(timing.decode, network, way, n, batch) for name, way in ways.items()}
            times = alternate({name: partial(_fitting, call, nothing) for name, call in calls.items()}, repeats)
            about = {"batch": batch, "predicted": plan.kv_bytes(n, batch, network.dtype), "allocated": held}
            steps.append(about | _json(times) | (_said(said, "decode_ms", n) if batch == 1 else {}))
            keep(found)
            progress(done := done + n * batch, total, f"decode at {n:,}, batch {batch}")
    return found


def _held(network: Any, way: "Variant", length: int, batch: int) -> int:
    from moa import timing

    return timing.held_bytes(timing.filled(network, way, length, batch))


def _fitting(call: Callable[[], T], otherwise: T) -> T:
    """What `call` gives, or `otherwise` where the device's memory does not suffice."""
    import torch

    try:
        return call()
    except torch.OutOfMemoryError:
        pass  # what the call held is free only after this block
    torch.cuda.empty_cache()
    return otherwise


def _said(predicted: "Predicted | None", what: str, length: int) -> dict[str, float]:
    """The plan's own prediction, if it has one."""
    figures = getattr(predicted, what, None)
    if predicted is None or figures is None or length not in predicted.lengths:
        return {}
    return {"predicted_seconds": figures[predicted.lengths.index(length)] / 1e3}


def _json(times: "dict[str, Times]") -> dict[str, Any]:
    return {name: t.summary() if t.seconds else None for name, t in times.items()}


def tables(found: dict[str, Any]) -> list["Table"]:
    """Prefill and decode: medians, each with the distance between the quartiles (IQR) as a share of it."""
    from rich.table import Table

    title = f"{found['model']}, {found['dtype'].removeprefix('torch.')}, back-end {found['backend']}"
    times = "dense, {0} (IQR)", "plan, {0} (IQR)", "times", "predicted, {0}"
    first = [text.format("s") for text in times]
    prefill = Table("tokens", "attention kept", *first, title=f"{title}: prefill, batch 1")
    columns = *(text.format("ms") for text in times), "KV predicted, MiB", "allocated", "dense"
    decode = Table("tokens", "batch", *columns, title="a decode step")
    for cell in found["lengths"]:
        n = f"{cell['length']:,}"
        prefill.add_row(n, f"{cell['prefill_kept']:.3f}", *_compared(cell["prefill"], 1))
        for step in cell["decode"]:
            sizes = step["predicted"], step["allocated"]["plan"], step["allocated"]["dense"]
            mib = [FULL if size is None else f"{size / 2**20:.1f}" for size in sizes]
            decode.add_row(n, str(step["batch"]), *_compared(step, 1e3), *mib)
    if about := found.get("predicted_for"):
        errors = ", ".join(f"{name.removesuffix('_ms')} {error:.1%}" for name, error in about["error"].items())
        decode.caption = f"times predicted for {about['device']}{errors and f'; median error of the fit: {errors}'}"
    return [prefill, decode]


def _compared(cell: dict[str, Any], unit: float) -> list[str]:
    dense, plan = cell["dense"], cell["plan"]
    shown = [f"{unit * t['median']:.3g} ({t['iqr']:.0%})" if t else FULL for t in (dense, plan)]
    said = f"{unit * cell['predicted_seconds']:.3g}" if "predicted_seconds" in cell else "-"
    return [*shown, f"{dense['median'] / plan['median']:.2f}" if dense and plan else "-", said]
