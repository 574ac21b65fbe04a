"""`moa search PROFILE -o PLAN.yaml --max-density 0.5`: find the plan of least harm within budgets."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.console import Console

    from moa.plans.plan import Plan
    from moa.profiler.profile import Profile
    from moa.search.budget import Budget
    from moa.search.cost import Costs
    from moa.search.objective import Mix

TIMES = "T@LENGTH[xBATCH], repeatable: milliseconds of a {}, by --costs."


def command(
    profile: Annotated[Path, typer.Argument(help="Profile made by `moa profile`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Plan to write (.yaml); with --front, a folder.")],
    max_density: Annotated[
        list[str] | None, typer.Option(help="D or D@LENGTH, repeatable; D alone holds at every profiled length.")
    ] = None,
    max_kv_gb: Annotated[
        list[str] | None, typer.Option(help="G@LENGTH[xBATCH], repeatable: cache in 10^9 bytes, 2 bytes per element.")
    ] = None,
    max_decode_ms: Annotated[list[str] | None, typer.Option(help=TIMES.format("decode step"))] = None,
    max_prefill_ms: Annotated[list[str] | None, typer.Option(help=TIMES.format("prefill"))] = None,
    costs: Annotated[Path | None, typer.Option(help="Costs made by `moa measure`.")] = None,
    max_harm: Annotated[
        str | None, typer.Option(help="H: instead of least harm, a harm of at most H at the least of --minimise.")
    ] = None,
    minimise: Annotated[
        str | None, typer.Option(help="KIND@LENGTH[xBATCH], KIND density, kv_gb, decode_ms or prefill_ms.")
    ] = None,
    front: Annotated[
        int | None, typer.Option(help="Instead of one plan, this many from the smallest to dense, within all budgets.")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="MODEL: also time the plan on it, beside what --costs predict.")
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Profiled lengths the plan is for, such as 2048. Default all; not with --front.")
    ] = None,
    source_weight: Annotated[list[str] | None, typer.Option(help="SOURCE=WEIGHT, repeatable; default 1.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver, per plan.")] = 60.0,
) -> None:
    """Find the plan of least harm within all budgets, proven to a printed gap.

    With --front, a front of plans: by predicted decode time at the longest profiled length where --costs are given,
    else by density.
    """
    from rich.console import Console

    import moa
    from moa.cli.common import numbers, writable
    from moa.plans.plan import Plan
    from moa.profiler.profile import Profile
    from moa.search.budget import cost, parse
    from moa.search.choose import choose, record
    from moa.search.cost import Costs
    from moa.search.objective import Mix

    given = {"density": max_density, "kv_gb": max_kv_gb, "decode_ms": max_decode_ms, "prefill_ms": max_prefill_ms}
    budgets = [parse(kind, text) for kind, texts in given.items() for text in texts or []]
    if (max_harm is None) != (minimise is None) or (minimise is not None and front is not None):
        raise MoaError("--max-harm and --minimise go together, and without --front")
    if lengths is not None and front is not None:
        raise MoaError("a front is over all profiled lengths: give --lengths or --front")
    least = None if minimise is None else cost(minimise)
    if max_harm is not None:
        budgets.append(parse("harm", max_harm))
    mix = Mix(_weights(source_weight or []))
    wanted = None if lengths is None else numbers("lengths", lengths)
    known = None if costs is None else Costs.load(costs)
    measured = Profile.load(profile)
    if known is not None:
        known.check(measured.model)
    elif measure is not None:
        raise MoaError("--measure compares with predicted times: give --costs")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if front is not None:
        _front(front, profile, measured, budgets, mix, known, time_limit, output, console)
        return
    writable(output, "plan", Plan.load)
    origin = record(profile, measured, budgets, moa.__version__)
    if minimise is not None:
        origin = origin.model_copy(update={"budget": f"{origin.budget}, least {minimise}"})
    if wanted is not None:
        origin = origin.model_copy(update={"budget": f"{origin.budget}, for {lengths}"})
    plan, solution = choose(
        measured,
        budgets,
        mix=mix,
        costs=known,
        minimise=least,
        lengths=wanted,
        time_limit=time_limit,
        provenance=origin,
    )
    plan.save(output)
    state = "time limit reached" if solution.timed_out else "optimal"
    given_, left = solution.columns
    console.print(
        f"{state}: {minimise or 'objective'} {solution.value:.4g}, gap {solution.gap:.1e}, {solution.seconds:.1f} s, "
        f"{left} of {given_} choices after pruning"
    )
    for n in wanted or measured.lengths:
        kept = plan.kv_bytes(n) / measured.model.dense_kv_bytes(n)
        console.print(f"  {n:>7} tokens: density {plan.density(n):.3f}, KV {kept:.3f} of dense")
    if known is not None:
        _times(plan, measured, budgets, known, measure, console)
    console.print(f"wrote {output}; next: moa show {output}, moa eval MODEL --plan {output}")


def _times(
    plan: "Plan", profile: "Profile", budgets: Sequence["Budget"], costs: "Costs", model: str | None, console: "Console"
) -> None:
    """Print the predicted time of everything that has a budget in milliseconds, and where `model` is given the real."""
    from statistics import median

    from moa.search.budget import work

    about, run = costs.environment, None
    if model is not None:
        from moa.cli.measure import check_place, environment, runner
        from moa.load import load_model

        network, _ = load_model(model, dtype=str(about["dtype"]))
        backend = str(about["backend"])
        plan.check(network)
        check_place(costs, environment(network, backend))
        run = runner(network, backend)
    for budget in budgets:
        if budget.kind in ("decode_ms", "prefill_ms"):
            for n in [budget.length] if budget.length is not None else profile.lengths:
                what = work(budget, n)
                predicted = costs.predict(plan, what)
                line = f"  {what}: {predicted:.1f} ms predicted, budget {budget.most:g}"
                if run is not None:
                    real = median(ms for _ in range(3) for ms in run(plan, what))
                    line += f", {real:.1f} ms measured, prediction off by {predicted / real - 1:+.1%}"
                console.print(line)
    errors = ", ".join(f"{kind} {error:.1%}" for kind, error in costs.error.items())
    console.print(
        f"  costs of {about['device']}, {about['backend']}, {about['dtype']}; median error of the fit {errors}"
    )


def _front(
    count: int, path: Path, profile: "Profile", budgets: Sequence["Budget"], mix: "Mix",
    costs: "Costs | None", time_limit: float, folder: Path, console: "Console",
) -> None:  # fmt: skip
    """Save the plans of a front as they are found, then their table and picture."""
    from rich.console import Console

    import moa
    from moa.front import picture, table
    from moa.search.budget import Budget
    from moa.search.choose import record
    from moa.search.front import front

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise MoaError(f"with --front, output must be a new or an empty folder, found {folder}")
    folder.mkdir(exist_ok=True)
    timed = costs is not None and "decode" in costs.terms
    axis = Budget("decode_ms", 1, max(profile.lengths)) if timed else Budget("density", 1)
    points = {}
    for point in front(profile, count, axis, budgets, mix=mix, costs=costs, time_limit=time_limit):
        name = f"{axis.kind.replace('_', '-')}-{point.budget.most:g}.yaml"
        origin = record(path, profile, [point.budget, *budgets], moa.__version__)
        point.plan.model_copy(update={"provenance": origin}).save(folder / name)
        points[name] = point
        console.print(f"  {point.budget}: objective {point.solution.value:.4g}, {point.solution.seconds:.1f} s")
    found = table(points, profile.lengths, costs)
    Console(highlight=False).print(found)
    with (folder / "front.txt").open("w") as file:
        Console(file=file, width=160).print(found)
    picture(points, profile.lengths, costs, folder / "front.png")
    console.print(f"wrote {len(points)} plans, front.txt and front.png to {folder}")


def _weights(texts: list[str]) -> dict[str, float]:
    """Weights from `text=1`."""
    weights = {}
    for text in texts:
        name, _, weight = text.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise MoaError(f"a source weight is written SOURCE=WEIGHT, found {text!r}") from None
    return weights
