"""`moa compare A B`: put plans and runs beside each other on one page."""

from pathlib import Path
from typing import Annotated

import typer

from moa.cli.common import Json


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Two or more: plan files, names of shipped plans, folders of moa compress, results of moa eval.",
            metavar="A B...",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Page to write (.html).")] = Path("compare.html"),
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths at which to show plans, in tokens. Default: those that they were made for."),
    ] = None,
    json_: Json = False,
) -> None:
    """Put plans and runs beside each other: what they cost, what each head keeps, what was measured of them.

    Example: moa compare smollm2-135m-instruct-0.25 smollm2-135m-instruct-0.5 -o compare.html
    """
    from rich.console import Console

    import moa
    from moa.cli.common import messages, numbers, print_json
    from moa.evaluation.summary import table
    from moa.report.figures import Figures
    from moa.report.plan import costs

    found = moa.compare_runs(sources, output, lengths=None if lengths is None else numbers("lengths", lengths))
    if json_:
        print_json(found.figures())
    else:
        console = Console(soft_wrap=True, highlight=False, markup=False)
        if found.plans:
            console.print(costs(found.plans, found.lengths, found.dtype))
        if found.rows:
            headings, rows = table(found.rows)
            console.print(Figures(headings, rows, names=2))
        console.print(*found.differ(), sep="\n", end="\n" if found.differ() else "")
    messages().print(f"wrote {output}")
