"""`moa search PROFILE -o PLAN.yaml --max-density 0.5`: find the plan of least harm within budgets."""

from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.plans.errors import BudgetInfeasible, MoaError, brief

if TYPE_CHECKING:
    from moa.plans.plan import Plan
    from moa.search.descent import Descent
    from moa.search.objective import Mix
    from moa.search.solver import Solution

ROUND_SAMPLES = 4
TIMES = "T@LENGTH[xBATCH], repeatable: milliseconds of a {}, by --costs."


def command(
    profile: Annotated[Path, typer.Argument(help="Profile made by `moa profile`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Plan to write (.yaml); with --front, a folder.")],
    max_density: Annotated[
        list[str] | None, typer.Option(help="D or D@LENGTH, repeatable; D alone holds at the longest intended length.")
    ] = None,
    max_kv_gb: Annotated[
        list[str] | None, typer.Option(help="G@LENGTH[xBATCH], repeatable: cache in 10^9 bytes, by --kv-dtype.")
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16, ...: of the cache. Default: what was profiled.")
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
        str | None, typer.Option(help="The only profiled lengths that the plan is for, such as 2048. Default: all.")
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            help="Longest text that the plan is for. Default: 4 times the longest profiled, if the model can; "
            "with --lengths, the longest of them."
        ),
    ] = None,
    source_weight: Annotated[list[str] | None, typer.Option(help="SOURCE=WEIGHT, repeatable; default 1.")] = None,
    pattern: Annotated[
        list[str] | None, typer.Option(help="sink_window, keydiff_window; repeatable. Default: all that were profiled.")
    ] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver, per plan.")] = 60.0,
    validate: Annotated[
        str | None, typer.Option(help="MODEL: measure the plan's KL and recall on text held out from calibration.")
    ] = None,
    validate_length: Annotated[
        int | None, typer.Option(help="Tokens of validation's samples. Default: the shortest length the plan is for.")
    ] = None,
    trials: Annotated[
        int, typer.Option(help="With --validate: mixes of sources, lengths and layers to try, the best plan kept.")
    ] = 1,
    rounds: Annotated[
        int,
        typer.Option(help="With --validate: times to profile around the plan and to go on from there, the best kept."),
    ] = 0,
    round_samples: Annotated[int, typer.Option(help="Samples per source and length in each round.")] = ROUND_SAMPLES,
    storage: Annotated[
        str | None,
        typer.Option(help="Journal file or database URL of the trials; workers that share it join forces."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trials, of validation's tasks and of rounds.")] = 0,
    dtype: Annotated[str, typer.Option(help="Of the model to validate: auto, float32, bfloat16, float16.")] = "auto",
    calibrate: Annotated[
        int | None, typer.Option(help="With --validate: measure so many plans; --max-harm is then nats per token.")
    ] = None,
) -> None:
    """Find the plan of least harm within all budgets, proven to a printed gap.

    With --validate, that plan is measured on the model; with --trials, other mixes of the harms are tried there too,
    and the plan that does least is kept; with --rounds it goes on from there by what is measured around it.

    With --front, a front of plans: by predicted decode time at the longest length where --costs are given, else by
    density there.
    """
    from rich.console import Console

    import moa
    from moa.cli import study
    from moa.cli.common import choice, numbers, writable
    from moa.cli.front import write_front
    from moa.cli.measure import compare
    from moa.environment import environment
    from moa.load import check_options
    from moa.plans.model import DTYPES
    from moa.plans.plan import Plan
    from moa.profiler.fingerprint import fingerprint
    from moa.profiler.profile import Profile, digest
    from moa.search.budget import ASSUMED, cost, parse
    from moa.search.choose import choose, pose, record
    from moa.search.cost import Costs
    from moa.search.lengths import Lengths
    from moa.search.objective import Mix

    given = {"density": max_density, "kv_gb": max_kv_gb, "decode_ms": max_decode_ms, "prefill_ms": max_prefill_ms}
    budgets = [parse(kind, text) for kind, texts in given.items() for text in texts or []]
    if (max_harm is None) != (minimise is None) or (minimise is not None and front is not None):
        raise MoaError("--max-harm and --minimise go together, and without --front")
    least = None if minimise is None else cost(minimise)
    if max_harm is not None:
        budgets.append(parse("harm", max_harm))
    stored = choice("--kv-dtype", kv_dtype, DTYPES)
    options = study.Study(trials, rounds, round_samples, storage, seed)
    options.check()
    if validate is None and (trials > 1 or rounds or storage or calibrate is not None or validate_length is not None):
        raise MoaError("trials, rounds, storage, calibrate and validate-length go with --validate MODEL")
    if validate is None and dtype != "auto":
        raise MoaError("--dtype is of the model to validate: give --validate MODEL")
    if not rounds and round_samples != ROUND_SAMPLES:
        raise MoaError("--round-samples go with --rounds")
    if calibrate is not None and calibrate < 2:
        raise MoaError(f"calibrate takes 2 plans or more, found {calibrate}")
    if not time_limit > 0:
        raise MoaError(f"--time-limit must be over 0 seconds, found {time_limit}")
    if trials > 1 and source_weight:
        raise MoaError("trials choose the weights of sources: no --source-weight with them")
    if (trials > 1 or rounds) and max_harm is not None:
        raise MoaError("trials and rounds make harm least: no --max-harm with them")
    if front is not None and (validate is not None or measure is not None):
        raise MoaError("--validate and --measure take one plan: not with --front")
    mix = Mix(_weights(source_weight or []))
    known = None if costs is None else Costs.load(costs)
    measured = Profile.load(profile)
    if pattern is not None:
        measured = measured.only(pattern)
    if "kl" in (measured.meta.get("loss"), *(loss for _, loss in measured.meta.get("sources", {}).values())):
        raise MoaError(f"{profile} holds slopes around a plan, not harm: search from a profile of a loss other than kl")
    span = Lengths.of(measured, None if lengths is None else numbers("lengths", lengths), max_length)
    budgets = [budget if budget.kind == "harm" else budget.at(span.longest) for budget in budgets]
    if known is not None:
        known.check(measured.model)
    elif measure is not None:
        raise MoaError("--measure compares with predicted times: give --costs")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    unknown = stored is None and measured.dtype is None
    assumed = f"{profile} names no dtype: the cache is counted in {ASSUMED}; --kv-dtype names another"
    stored = stored or measured.dtype or ASSUMED
    budgets = [budget.stored(stored) for budget in budgets]
    least = None if least is None else least.stored(stored)
    if front is not None:
        write_front(front, profile, measured, budgets, mix, known, span, time_limit, stored, output, console)
        if unknown:
            console.print(assumed)
        return
    writable(output, "plan", Plan.load)
    unknown_yet = calibrate is not None and max_harm is not None  # what nats come to
    asked = [*budgets[:-1], replace(budgets[-1], most=inf)] if unknown_yet else budgets
    pose(measured, asked, mix=mix, costs=known, minimise=least, lengths=span, kv_dtype=stored)
    origin = record(profile, measured, budgets, moa.__version__, mix.sources)
    if least is not None:
        unit = "" if calibrate is None else " nats per token"
        origin = origin.model_copy(update={"budget": f"{origin.budget}{unit}, least {minimise}{least.unit}"})
    if lengths is not None:
        origin = origin.model_copy(update={"budget": f"{origin.budget}, for {lengths}"})
    network: Any = None
    run = None
    if measure is not None:
        check_options(measure, {str(profile): measured.model})
    if validate is not None:
        options.ready(measured, mix, span, output)
        at = validate_length or span.profiled[0]
        network, tokenizer, check = study.validation(measured, validate, dtype, at, seed)
    if measure is not None and known is not None:
        from moa.measuring import runner_of

        run = runner_of(known, measure, network if measure == validate else None)
    scale = None if calibrate is None else study.calibrated(measured, mix, check, calibrate, span, console)
    if scale is not None and max_harm is not None:
        budgets[-1] = replace(budgets[-1], most=scale.objective(budgets[-1].most))

    def solve(mixed: "Mix", descent: "Descent | None" = None) -> "tuple[Plan, Solution]":
        try:
            plan, solution = choose(
                measured, budgets, mix=mixed, costs=known, minimise=least, lengths=span, descent=descent,
                time_limit=time_limit, provenance=origin, kv_dtype=stored,
            )  # fmt: skip
        except BudgetInfeasible as error:
            if scale is None or max_harm is None:
                raise
            typed = f"harm<={max_harm} nats per token"
            raise BudgetInfeasible(scale.reword(str(error), str(budgets[-1]), typed)) from None
        said = plan.predicted
        # The scale is of this profile and mix, and of one length.
        if scale is None or descent is not None or mixed != mix or span.all != (check.length,):
            return plan, solution
        assert said is not None
        assert said.harm is not None
        said = said.model_copy(update={"kl": (float(f"{scale.nats(said.harm[0]):.4g}"),)})
        return plan.model_copy(update={"predicted": said}), solution

    plan, solution = solve(mix)
    plan.save(output)
    state = "time limit reached" if solution.timed_out else "optimal"
    given_, left = solution.columns
    console.print(
        f"{state}: {minimise or 'objective'} {solution.value:.4g}, gap {solution.gap:.1e}, {solution.seconds:.1f} s, "
        f"{left} of {given_} choices after pruning"
    )
    if scale is not None and minimise is None:
        console.print(f"  about {scale.nats(solution.value):.4f} nats per token of KL by the calibration")
    if validate is not None:
        here = environment(network, None)
        about = {
            "weights": fingerprint(network), **{name: here[name] for name in ("backend", "dtype")},
            "budgets": [*map(repr, budgets), repr(least)], "costs": None if costs is None else digest(costs),
            "lengths": span.all, "length": check.length, "seed": seed, "sources": dict(mix.sources),
        }  # fmt: skip
        best = study.run(
            measured, lambda mix, descent=None: solve(mix, descent)[0], mix, options, network, tokenizer, check, span,
            about, output, console,
        )  # fmt: skip
        plan = best.plan
        console.print(f"  {study.summary(best)}, on {check.length} tokens of held-out text")
    for n in span.all:
        held, dense = plan.kv_bytes(n, dtype=stored), measured.model.dense_kv_bytes(n, dtype=stored)
        beyond = ", longer than any profiled text" if n in span.ahead else ""
        console.print(
            f"  {n:>7} tokens: density {plan.density(n):.3f}, KV {held / dense:.3f} of dense, {held / 1e9:.4g} GB in "
            f"{stored}{beyond}"
        )
    if unknown:
        console.print(f"  {assumed}")
    if known is not None:
        compare(plan, span.all, budgets, least, known, run, console)
    console.print(f"wrote {output}; next: moa show {output}, moa eval MODEL --plan {output}")


def _weights(texts: list[str]) -> dict[str, float]:
    """Weights from `text=1`."""
    weights = {}
    for text in texts:
        name, _, weight = text.partition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise MoaError(f"a source weight is written SOURCE=WEIGHT, found {brief(text)}") from None
    return weights
