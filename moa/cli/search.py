"""`moa search PROFILE -o PLAN.yaml --max-density 0.5`: find the plan of least harm within budgets."""

from pathlib import Path
from typing import Annotated

import typer

from moa.cli import asked, refine
from moa.cli.common import Json, Quiet
from moa.plans.errors import MoaError

MOVED = "moa search --validate MODEL is now moa refine PROFILE MODEL; the next release drops the old option"
_OF_REFINE = typer.Option(hidden=True)


def command(
    profile: Annotated[Path, typer.Argument(help="Profile, made by `moa profile`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Plan to write (.yaml); with --front, a folder.")],
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
            help="H: instead of the least harm, allow a harm of at most H and minimise the cost of --minimise."
        ),
    ] = None,
    minimise: asked.Minimise = None,
    front: Annotated[
        int | None,
        typer.Option(
            help="Number of plans to find instead of one, from the smallest to dense, all within the other budgets."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="MODEL: also time the plan on this model, and print the times next to those predicted from --costs."
        ),
    ] = None,
    lengths: asked.Lengths = None,
    max_length: asked.Longest = None,
    source_weight: asked.Weights = None,
    pattern: asked.Patterns = None,
    keep_all: asked.KeepAll = False,
    time_limit: asked.Seconds = 60.0,
    validate: Annotated[str | None, _OF_REFINE] = None,
    validate_length: Annotated[int | None, _OF_REFINE] = None,
    trials: Annotated[int, _OF_REFINE] = 1,
    rounds: Annotated[int, _OF_REFINE] = 0,
    round_samples: Annotated[int | None, _OF_REFINE] = None,
    storage: Annotated[str | None, _OF_REFINE] = None,
    seed: Annotated[int, _OF_REFINE] = 0,
    dtype: Annotated[str, _OF_REFINE] = "auto",
    calibrate: Annotated[int | None, _OF_REFINE] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the plan of least harm within all budgets, and print how far it can be from the optimum.

    With --front, find a front of plans: by predicted decode time at the longest length if --costs are given, else by
    density there. `moa refine` improves the plan by measuring plans on the model.

    Example: moa search profile.safetensors -o plan.yaml --max-density 0.25
    """
    from rich.console import Console

    import moa
    from moa.cli.common import messages, print_json
    from moa.outputs import writable
    from moa.plans.plan import Plan
    from moa.report.front import table

    if validate is not None and (front is not None or measure not in (None, validate)):
        raise MoaError(
            "moa refine finds one plan for one model: it takes no --front, and --measure only for the same MODEL"
        )
    of_refine = (validate_length, trials, rounds, round_samples, storage, seed, dtype, calibrate)
    if validate is None and of_refine != (None, 1, 0, None, None, 0, "auto", None):
        raise MoaError("trials, rounds, storage, seed, dtype and calibrate are options of moa refine PROFILE MODEL")
    budgets = asked.budgets(
        density=max_density,
        kv_gb=max_kv_gb,
        decode_ms=max_decode_ms,
        prefill_ms=max_prefill_ms,
        harm=max_harm,
        read=max_read,
    )
    options = asked.options(
        minimise=minimise, costs=costs, lengths=lengths, max_length=max_length, source_weight=source_weight,
        pattern=pattern, kv_dtype=kv_dtype, keep_all=keep_all, time_limit=time_limit,
    )  # fmt: skip
    if validate is not None:
        refine.improve(
            profile, validate, output, budgets, options, opening=MOVED, trials=trials, rounds=rounds,
            round_samples=round_samples, calibration=calibrate, validate_length=validate_length, storage=storage,
            seed=seed, dtype=dtype, measure=measure is not None, json_=json_, quiet=quiet,
        )  # fmt: skip
        return
    console = messages(quiet)
    if front is not None:
        if measure is not None:
            raise MoaError("--measure times one plan, so it cannot be used with --front")
        row = moa.find_front(profile, front, budgets, **options)
        points = row.save(output, console.print)
        if json_:
            plans = {name: asked.figures(point.plan, point.solution) for name, point in points.items()}
            print_json([{"name": name, **told} for name, told in plans.items()])
        else:
            Console(highlight=False).print(table(points, row.question.lengths.longest, row.question.costs))
        console.print(f"wrote {len(points)} plans, front.txt and front.png to {output}")
        for note in filter(None, (asked.assumed(row.question, profile, kv_dtype), row.question.left_out(row.axis))):
            console.print(note)
        return
    writable(output, "plan", Plan.load)
    found = moa.find_plan(profile, budgets, measure=measure, **options)
    found.plan.save(output)
    if json_:
        print_json(asked.figures(found.plan, found.solution, found.times))
    console.print(found.question.told(found.solution))
    asked.show(found.plan, found.question, found.times, asked.assumed(found.question, profile, kv_dtype), console)
    console.print(f"wrote {output}; next: moa show {output}, moa eval MODEL --plan {output}")
