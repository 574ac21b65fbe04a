"""`moa bench MODEL --plan PLAN`: measure time and memory of a plan on this machine, beside the dense model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.cli.common import Backend, Dtype, Json, Model, Quiet

if TYPE_CHECKING:
    from moa.report.figures import Figures

FULL = "does not fit"


def command(
    model: Model,
    plan: Annotated[str, typer.Option(help="Plan file or name of a shipped plan.")],
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, in tokens, separated by commas.")] = "1024,2048",
    batches: Annotated[str, typer.Option(help="Batch sizes of decode steps, separated by commas.")] = "1",
    repeats: Annotated[
        int, typer.Option(help="Number of times that the dense model and the plan take turns.", min=1)
    ] = 3,
    backend: Backend = None,
    dtype: Dtype = "auto",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results to write (.json).")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time prefill and decode steps of the dense model and of a plan, and compare allocated with predicted bytes.

    Decode steps run on caches filled with random keys, or with those of a text where steps choose what they read. The
    tables have the MiB that a step reads and a cache takes. The dense model uses a DynamicCache, the plan a KVCache
    that grows, as `generate` does. With -o, OUTPUT is written after each finished measurement.

    Example: moa bench HuggingFaceTB/SmolLM2-135M-Instruct --plan smollm2-135m-instruct-0.25 --lengths 1024,4096
    """
    from rich.console import Console

    import moa
    from moa.cli.common import Bar, messages, numbers, print_json

    with Bar("measuring", messages(quiet)) as progress:
        found = moa.bench_plan(
            model, plan, lengths=numbers("lengths", lengths), batches=numbers("batches", batches), repeats=repeats,
            backend=backend, dtype=dtype, output=output, progress=progress,
        )  # fmt: skip
    if json_:
        print_json(found)
    else:
        Console(soft_wrap=True).print(*tables(found), sep="\n")
    if output is not None:
        messages(quiet).print(f"wrote {output}")


def tables(found: dict[str, Any]) -> list["Figures"]:
    """Return the tables of prefill and decode: medians, each with its interquartile range (IQR) as a share of it."""
    from moa.report.figures import Figures

    about = found["environment"]
    title = f"{found['model']}, {about['dtype']}, back-end {about['backend']}"
    times = "dense (IQR)", "plan (IQR)", "speed-up", "predicted"
    memory = "KV read", "KV plan", "KV predicted", "KV dense"
    prefill, decode, caption = [], [], ""
    for cell in found["lengths"]:
        n = f"{cell['length']:,}"
        prefill.append([n, f"{cell['prefill_kept']:.3f}", *_compared(cell["prefill"], 1)])
        for step in cell["decode"]:
            sizes = step["read_bytes"], step["allocated"]["plan"], step["predicted"], step["allocated"]["dense"]
            mib = [FULL if size is None else f"{size / 2**20:.1f}" for size in sizes]
            decode.append([n, str(step["batch"]), *_compared(step, 1e3), *mib])
    if said := found.get("predicted_for"):
        errors = ", ".join(f"{name.removesuffix('_ms')} {error:.1%}" for name, error in said["error"].items())
        caption = f"times predicted for {said['device']}{errors and f'; median error of the fit: {errors}'}"
    return [
        Figures(["tokens", "attention kept", *times], prefill, f"{title}: prefill of one sequence, seconds"),
        Figures(["tokens", "batch", *times, *memory], decode, "a decode step, ms, and its KV cache, MiB", caption, 2),
    ]


def _compared(cell: dict[str, Any], unit: float) -> list[str]:
    dense, plan = cell["dense"], cell["plan"]
    shown = [f"{unit * t['median']:.3g} ({t['iqr']:.0%})" if t else FULL for t in (dense, plan)]
    said = f"{unit * cell['predicted_seconds']:.3g}" if "predicted_seconds" in cell else "-"
    return [*shown, f"{dense['median'] / plan['median']:.2f}" if dense and plan else "-", said]
