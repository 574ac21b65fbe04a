"""`moa search PROFILE -o PLAN.yaml --max-density 0.5`: find the plan of least harm within budgets."""

from pathlib import Path
from typing import Annotated

import typer

from moa.plans.errors import MoaError


def command(
    profile: Annotated[Path, typer.Argument(help="Profile made by `moa profile`.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Plan to write (.yaml).")],
    max_density: Annotated[
        list[str] | None, typer.Option(help="D or D@LENGTH, repeatable; D alone holds at every profiled length.")
    ] = None,
    max_kv_gb: Annotated[
        list[str] | None, typer.Option(help="G@LENGTH[xBATCH], repeatable: cache in 10^9 bytes, 2 bytes per element.")
    ] = None,
    source_weight: Annotated[list[str] | None, typer.Option(help="SOURCE=WEIGHT, repeatable; default 1.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds for the solver.")] = 60.0,
) -> None:
    """Find the plan of least harm within all budgets, proven to a printed gap."""
    from rich.console import Console

    import moa
    from moa.cli.common import writable
    from moa.profiler.profile import Profile
    from moa.search.budget import parse
    from moa.search.choose import choose, record

    budgets = [parse("density", text) for text in max_density or []]
    budgets += [parse("kv_gb", text) for text in max_kv_gb or []]
    writable(output)
    measured = Profile.load(profile)
    plan, solution = choose(
        measured, budgets, weights=_weights(source_weight or []), time_limit=time_limit,
        provenance=record(profile, measured, budgets, moa.__version__),
    )  # fmt: skip
    plan.save(output)
    console = Console(stderr=True)
    state = "time limit reached" if solution.timed_out else "optimal"
    given, left = solution.columns
    console.print(
        f"{state}: objective {solution.value:.4g}, gap {solution.gap:.1e}, {solution.seconds:.1f} s, "
        f"{left} of {given} choices after pruning"
    )
    for n in measured.lengths:
        kept = plan.kv_bytes(n) / measured.model.dense_kv_bytes(n)
        console.print(f"  {n:>7} tokens: density {plan.density(n):.3f}, KV {kept:.3f} of dense")
    console.print(f"wrote {output}; next: moa show {output}, moa eval MODEL --plan {output}", soft_wrap=True)


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
