"""`moa measure MODEL -o COSTS.json`: time decode steps and prefills here, for budgets in milliseconds."""

from pathlib import Path
from typing import Annotated

import typer

from moa.cli.common import Backend, Dtype, Json, Model, Quiet


def command(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Costs to write (.json).")],
    lengths: Annotated[
        str, typer.Option(help="Two or more lengths to measure at, in tokens, separated by commas.")
    ] = "1024,4096",
    batches: Annotated[
        str, typer.Option(help="Batch sizes of decode steps, separated by commas; a prefill has one sequence.")
    ] = "1,4",
    rounds: Annotated[
        int, typer.Option(help="Largest number of rounds; fewer are run if all medians are certain before.")
    ] = 8,
    reads: Annotated[
        bool,
        typer.Option(
            "--reads",
            help="Also time plans that read less than they keep, so that a search within milliseconds may "
            "choose reads.",
        ),
    ] = False,
    backend: Backend = None,
    dtype: Dtype = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time the model under a few plans, and fit costs by which `moa search --costs` predicts the time of any plan.

    Example: moa measure HuggingFaceTB/SmolLM2-135M-Instruct -o costs.json --lengths 1024,4096
    """
    import moa
    from moa.cli.common import Bar, messages, numbers, print_json
    from moa.search.spread import SURE

    console = messages(quiet)
    with Bar("measuring", console) as progress:
        costs = moa.measure_costs(
            model, lengths=numbers("lengths", lengths), batches=numbers("batches", batches), rounds=rounds, reads=reads,
            backend=backend, dtype=dtype, output=output, progress=progress,
        )  # fmt: skip
    if json_:
        print_json(costs.model_dump(mode="json"))
    for kind, terms in costs.terms.items():
        console.print(f"{kind}: median error of the fit {costs.error[kind]:.1%}; terms in ms:", end=" ")
        console.print(", ".join(f"{name} {ms:.3g}" for name, ms in terms.items()))
    unsure = sum(not row.is_sure for row in costs.measured)
    if unsure:
        console.print(
            f"{unsure} of {len(costs.measured)} medians have a standard error over {SURE:.0%}, or too few rounds to "
            "tell: use more --rounds, or a machine that does nothing else"
        )
    console.print(f"wrote {output}; next: moa search PROFILE -o plan.yaml --max-decode-ms T@N --costs {output}")
