"""`moa compress MODEL -o DIR`: from a model to a plan and what it costs and gains, in one command."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moa.cli import asked
from moa.cli.common import Dtype, Json, Model, Quiet
from moa.cli.configured import Config

if TYPE_CHECKING:
    from moa.compressing import Compressed


def command(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for everything; run again, it goes on.")],
    density: Annotated[
        float | None,
        typer.Option(
            "--budget",
            help="Largest density at the longest text that the plan is for: the share of keys that is kept. Default: "
            "0.25 where no other budget is given.",
        ),
    ] = None,
    max_kv_gb: Annotated[
        list[str] | None,
        typer.Option(help="G@LENGTH[xBATCH]: largest KV cache, in 10^9 bytes of the model's dtype. Repeatable."),
    ] = None,
    max_read: asked.Read = None,
    max_decode_ms: Annotated[
        list[str] | None,
        typer.Option(
            help="T@LENGTH[xBATCH]: largest time of a decode step, in milliseconds; measures costs too. Repeatable."
        ),
    ] = None,
    minutes: Annotated[float, typer.Option(help="What all of it may take.")] = 15.0,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to profile and evaluate at, in tokens, separated by commas. Default: 1024,2048,4096, as far "
            "as model and minutes allow."
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest text that the plan is for, in tokens. Default: 4 times the longest profiled length, if the "
            "model takes as much."
        ),
    ] = None,
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Seed of calibration texts and of the evaluation's samples.")] = 0,
    config: Config = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Profile a model, find a plan within a budget and evaluate it, all sized to fit some minutes.

    If it is stopped, run the same command again: it goes on. OUTPUT gets the plan (plan.yaml), the profile, the
    evaluation, every figure (figures.json) and a page about them (report.html).

    Example: moa compress HuggingFaceTB/SmolLM2-135M-Instruct -o smollm2
    """
    import moa
    from moa.cli.common import Bar, messages, numbers, print_json

    budgets = asked.budgets(density=density if density is None else [str(density)], kv_gb=max_kv_gb, read=max_read,
                            decode_ms=max_decode_ms, prefill_ms=None, harm=None)  # fmt: skip
    with Bar("compressing", messages(quiet)) as bar:
        found = moa.compress(
            model, output=output, budget=budgets or 0.25, minutes=minutes,
            lengths=None if lengths is None else numbers("lengths", lengths), max_length=max_length, dtype=dtype,
            seed=seed, progress=bar, note=bar.note,
        )  # fmt: skip
    if json_:
        print_json(found.figures)
    else:
        _show(found)


def _show(found: "Compressed") -> None:
    from rich.console import Console

    from moa.cli.eval import table
    from moa.outcome import numbers, verdict

    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table(found.figures))
    plan = found.folder / "plan.yaml"
    console.print(*numbers(found.figures), *verdict(found.figures), sep="\n")
    there = [path for path in (plan.with_name("figures.json"), plan.with_name("report.html")) if path.exists()]
    console.print(f"plan: {plan}; all figures: {', '.join(map(str, there))}")
    console.print(f"in Python: with moa.apply(model, {json.dumps(str(plan))}): model.generate(**inputs)")
