"""`moa refine PROFILE MODEL -o PLAN.yaml --max-density 0.5`: a search that also runs the model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.cli import asked
from moa.cli.common import Dtype, Json, Quiet

if TYPE_CHECKING:
    from moa.search.question import Options


def command(
    profile: Annotated[Path, typer.Argument(help="Profile, made by `moa profile`.")],
    model: Annotated[str, typer.Argument(help="Model that was profiled: hub id, local folder, or .gguf file.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Plan to write (.yaml); it is always the best so far.")
    ],
    *,
    max_density: asked.Density = None,
    max_read: asked.Read = None,
    max_kv_gb: asked.Memory = None,
    kv_dtype: asked.Stored = None,
    max_decode_ms: asked.Decode = None,
    max_prefill_ms: asked.Prefill = None,
    costs: asked.Measured = None,
    max_harm: Annotated[
        str | None,
        typer.Option(
            help="H: instead of the least harm, allow a harm of at most H; with --calibrate, in nats per token."
        ),
    ] = None,
    minimise: asked.Minimise = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Also time the plan, and print the times next to those predicted from --costs."),
    ] = False,
    lengths: asked.Lengths = None,
    max_length: asked.Longest = None,
    source_weight: asked.Weights = None,
    pattern: asked.Patterns = None,
    keep_all: asked.KeepAll = False,
    time_limit: asked.Seconds = 60.0,
    validate_length: Annotated[
        int | None,
        typer.Option(
            help="Length of the held-out samples, in tokens. Default: the shortest length that the plan is for."
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of mixes of harms to try. Default: 12; 1 with --source-weight or --max-harm."),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(help="Number of rounds, each of which profiles around the best plan and looks for a better one."),
    ] = 0,
    round_samples: Annotated[
        int | None, typer.Option(help="Number of samples per source and length in each round.")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Journal file or database URL that stores the trials; workers that share it work on one study."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trials, the held-out tasks and the rounds.")] = 0,
    dtype: Dtype = "auto",
    calibrate: Annotated[
        int | None, typer.Option(help="Number of plans to measure, so that harm can be given in nats per token.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find a plan as `moa search` does, then better plans by measuring them on text held out from calibration.

    Trials weigh the profile's harms in other ways; each is solved exactly within all budgets. Rounds profile the model
    around the best plan and search from there.

    Example: moa refine profile.safetensors HuggingFaceTB/SmolLM2-135M-Instruct -o plan.yaml --max-density 0.25
    """
    budgets = asked.budgets(
        density=max_density, read=max_read, kv_gb=max_kv_gb, decode_ms=max_decode_ms, prefill_ms=max_prefill_ms,
        harm=max_harm,
    )  # fmt: skip
    options = asked.options(
        minimise=minimise, costs=costs, lengths=lengths, max_length=max_length, source_weight=source_weight,
        pattern=pattern, kv_dtype=kv_dtype, keep_all=keep_all, time_limit=time_limit,
    )  # fmt: skip
    improve(
        profile, model, output, budgets, options, trials=trials, rounds=rounds, round_samples=round_samples,
        calibration=calibrate, validate_length=validate_length, storage=storage, seed=seed, dtype=dtype,
        measure=measure, json_=json_, quiet=quiet,
    )  # fmt: skip


def improve(
    profile: Path, model: str, output: Path, budgets: dict[str, list[str]], options: "Options", *, opening: str = "",
    json_: bool = False, quiet: bool = False, **how: Any,
) -> None:  # fmt: skip
    """Run `moa.refine_plan` and print what it found; `opening` is a line to print before the work."""
    import moa
    from moa.cli.common import Bar, messages, print_json

    console = messages(quiet)
    with Bar("refining", console, opening) as bar:
        found = moa.refine_plan(profile, model, output, budgets, **how, progress=bar, note=bar.note, **options)
    if json_:
        told = asdict(found.best.measured) | {"length": found.length, "plain_mix": asdict(found.best.base)}
        print_json(asked.figures(found.plan, found.solution, found.times) | {"held_out": told})
    console.print(f"  {found.best}, on {found.length} tokens of held-out text")
    note = asked.assumed(found.question, profile, options["kv_dtype"])
    asked.show(found.plan, found.question, found.times, note, console)
    console.print(f"wrote {output}; next: moa show {output}, moa eval {model} --plan {output}")
