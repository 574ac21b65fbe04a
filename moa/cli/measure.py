"""`moa measure MODEL -o COSTS.json`: what decode steps and prefills take here, for budgets in milliseconds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from rich.console import Console

    from moa.plans.plan import Plan
    from moa.search.budget import Budget
    from moa.search.cost import Costs, Work


def command(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Costs to write (.json).")],
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, two or more, tokens.")] = "1024,4096",
    batches: Annotated[str, typer.Option(help="Sequences in a decode step; prefills take one.")] = "1,4",
    rounds: Annotated[int, typer.Option(help="Measure everything in turn, this many times over.")] = 3,
    backend: Annotated[str | None, typer.Option(help="reference, torch, numba, triton; else the device's own.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Time the model under a few plans and fit costs that `moa search --costs` predicts the time of any plan with."""
    from rich.console import Console

    from moa.cli.common import Bar, numbers, writable
    from moa.journal import replace_json
    from moa.load import check_options, load_model
    from moa.measuring import measure_costs
    from moa.search.cost import Costs

    sizes, sequences = numbers("lengths", lengths), numbers("batches", batches)
    if min(*sizes, *sequences, rounds) < 1 or len(sizes) < 2:
        raise MoaError("lengths, batches and rounds must be 1 or more, and lengths two or more")
    writable(output, "file of costs", Costs.load)
    check_options(model, {}, lengths=sizes, backend=backend)
    network, _ = load_model(model, dtype=dtype)
    with Bar("measuring") as progress:
        costs = measure_costs(
            network, lengths=sizes, batches=sequences, rounds=rounds, backend=backend, progress=progress
        )
    replace_json(output, costs.model_dump(mode="json"))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for kind, terms in costs.terms.items():
        console.print(f"{kind}: median error of the fit {costs.error[kind]:.1%}; terms in ms:", end=" ")
        console.print(", ".join(f"{name} {ms:.3g}" for name, ms in terms.items()))
    console.print(f"wrote {output}; next: moa search PROFILE -o plan.yaml --max-decode-ms T@N --costs {output}")


def compare(
    plan: "Plan", lengths: Sequence[int], budgets: Sequence["Budget"], minimised: "Budget | None", costs: "Costs",
    run: "Callable[[Plan, Work], list[float]] | None", console: "Console",
) -> None:  # fmt: skip
    """Print predicted times, and where `run` is given real ones.

    Of everything that is limited or minimised in milliseconds; where nothing is, of a decode step and a prefill at the
    longest of `lengths`.
    """
    from statistics import median

    from moa.search.budget import work
    from moa.search.cost import Work

    timed = ("decode_ms", "prefill_ms")
    asked = [
        (work(budget, n), f", budget {budget.most:g}") for budget in budgets if budget.kind in timed
        for n in ([budget.length] if budget.length is not None else lengths)
    ]  # fmt: skip
    if minimised is not None and minimised.kind in timed:
        assert minimised.length is not None
        asked.append((work(minimised, minimised.length), ", minimised"))
    for what, why in asked or [(Work(kind, max(lengths)), "") for kind in costs.terms]:
        predicted = costs.predict(plan, what)
        line = f"  {what}: {predicted:.1f} ms predicted{why}"
        if run is not None:
            real = median(ms for _ in range(3) for ms in run(plan, what))
            line += f", {real:.1f} ms measured, prediction off by {predicted / real - 1:+.1%}"
        console.print(line)
    errors = ", ".join(f"{kind} {error:.1%}" for kind, error in costs.error.items())
    console.print(f"  costs of {costs.place}; median error of the fit {errors}")
