"""`moa refine PROFILE MODEL -o PLAN.yaml --max-density 0.5`: a search that also runs the model."""

from pathlib import Path
from typing import Annotated

import typer

from moa.cli import asked

SAMPLES = 4


def command(
    profile: Annotated[Path, typer.Argument(help="Profile made by `moa profile`.")],
    model: Annotated[str, typer.Argument(help="The model it is of: hub id, local folder, or .gguf file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Plan to write (.yaml): always the best so far.")],
    *,
    max_density: asked.Density = None,
    max_kv_gb: asked.Memory = None,
    kv_dtype: asked.Stored = None,
    max_decode_ms: asked.Decode = None,
    max_prefill_ms: asked.Prefill = None,
    costs: asked.Measured = None,
    max_harm: Annotated[
        str | None,
        typer.Option(help="H: instead of least harm, a harm of at most H; with --calibrate in nats per token."),
    ] = None,
    minimise: asked.Minimise = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time the plan, beside what --costs predict.")
    ] = False,
    lengths: asked.Lengths = None,
    max_length: asked.Longest = None,
    source_weight: asked.Weights = None,
    pattern: asked.Patterns = None,
    time_limit: asked.Seconds = 60.0,
    validate_length: Annotated[
        int | None, typer.Option(help="Tokens of the held-out samples. Default: the shortest length the plan is for.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Mixes of sources, lengths and layers to try. Default 12; 1 with weights or --max-harm."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(help="Times to profile around the best plan and to go on from there, the best kept.")
    ] = 0,
    round_samples: Annotated[int, typer.Option(help="Samples per source and length in each round.")] = SAMPLES,
    storage: Annotated[
        str | None,
        typer.Option(help="Journal file or database URL of the trials; workers that share it join forces."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trials, of the held-out tasks and of rounds.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the model: auto, float32, bfloat16, float16.")] = "auto",
    calibrate: Annotated[int | None, typer.Option(help="Measure so many plans, to say harm in nats per token.")] = None,
) -> None:
    """Find a plan as `moa search` does, then better ones by what plans do on text held out from calibration.

    Trials mix the harms in other ways, each mix solved exactly within all budgets; rounds measure around the best plan
    and go on from there.
    """
    from rich.console import Console

    import moa
    from moa.cli.common import Bar

    budgets = asked.budgets(max_density, max_kv_gb, max_decode_ms, max_prefill_ms, max_harm)
    options = asked.options(minimise, costs, lengths, max_length, source_weight, pattern, kv_dtype, time_limit)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Bar("refining", console) as bar:
        found = moa.refine_plan(
            profile, model, output, budgets, trials=trials, rounds=rounds, round_samples=round_samples,
            calibration=calibrate, validate_length=validate_length, storage=storage, seed=seed, dtype=dtype,
            measure=measure, progress=bar, note=console.print, **options,
        )  # fmt: skip
    console.print(f"  {found.best}, on {found.length} tokens of held-out text")
    asked.show(found.plan, found.question, found.times, asked.assumed(found.question, profile, kv_dtype), console)
    console.print(f"wrote {output}; next: moa show {output}, moa eval {model} --plan {output}")
