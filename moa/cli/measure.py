"""`moa measure MODEL -o COSTS.json`: what decode steps and prefills take here, for budgets in milliseconds."""

from pathlib import Path
from typing import Annotated

import typer

from moa.plans.errors import MoaError


def command(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Costs to write (.json).")],
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, two or more, tokens.")] = "1024,4096",
    batches: Annotated[str, typer.Option(help="Sequences in a decode step; prefills take one.")] = "1,4",
    rounds: Annotated[
        int, typer.Option(help="Measure everything in turn, at most this many times over, until medians are sure.")
    ] = 8,
    backend: Annotated[str | None, typer.Option(help="reference, torch, numba, triton; else the device's own.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Time the model under a few plans and fit costs that `moa search --costs` predicts the time of any plan with."""
    from rich.console import Console

    from moa.cli.common import Bar, numbers
    from moa.hf.load import check_options, load_model
    from moa.measuring import measure_costs
    from moa.outputs import writable
    from moa.plans.replace import replace_json
    from moa.search.cost import Costs
    from moa.search.spread import SURE

    sizes, sequences = numbers("lengths", lengths), numbers("batches", batches)
    if min(*sizes, *sequences, rounds) < 1 or len(sizes) < 2:
        raise MoaError("lengths, batches and rounds must be 1 or more, and lengths two or more")
    writable(output, "file of costs", Costs.read)
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
    unsure = sum(not row.is_sure for row in costs.measured)
    if unsure:
        console.print(
            f"{unsure} of {len(costs.measured)} medians have a standard error over {SURE:.0%}, or too few rounds to "
            "know: more rounds, or a machine that does nothing else, make them surer"
        )
    console.print(f"wrote {output}; next: moa search PROFILE -o plan.yaml --max-decode-ms T@N --costs {output}")
