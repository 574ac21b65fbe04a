"""`moa eval MODEL --plan PLAN`: measure what a plan costs in quality and saves in memory, beside the dense model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.cli.common import Backend, Dtype, Model

if TYPE_CHECKING:
    from rich.table import Table


def command(
    model: Model,
    plan: Annotated[list[str] | None, typer.Option(help="Plan file or name of a shipped plan. Repeatable.")] = None,
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, in tokens, separated by commas.")] = "1024,2048",
    needles: Annotated[int, typer.Option(help="Number of contexts with one needle, per length.")] = 20,
    four_needles: Annotated[int, typer.Option(help="Number of contexts with four needles, per length.")] = 5,
    ppl_windows: Annotated[int, typer.Option(help="Number of windows of held-out text, per length.")] = 2,
    task: Annotated[
        list[str] | None,
        typer.Option(help="NAME=COUNT: number of samples per length of the task of this name. Repeatable."),
    ] = None,
    uniform: Annotated[
        bool, typer.Option(help="Also measure, for each plan, a uniform window of at least its density.")
    ] = True,
    backend: Backend = None,
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results to write (.json).")] = None,
) -> None:
    """Measure perplexity, KL and needle retrieval of the dense model and of plans on the same samples.

    With -o, every result is also appended to OUTPUT.jsonl at once: if the command is stopped, run it again to continue.
    """
    from rich.console import Console

    import moa
    from moa.cli.common import Bar, by_name, distinct, numbers, plan_name
    from moa.evaluation.tasks import TASKS

    asked = {name: known.default for name, known in TASKS.items()}
    asked |= {"text": ppl_windows, "single": needles, "four": four_needles}
    asked |= by_name("--task is written NAME=COUNT", task or [], int)
    paths = plan or []
    plans = dict(zip(distinct(list(map(plan_name, paths))), paths, strict=True))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Bar("evaluating", console) as progress:
        found = moa.evaluate_plans(
            model, plans, lengths=numbers("lengths", lengths), tasks=asked, uniform=uniform, backend=backend,
            dtype=dtype, seed=seed, output=output, progress=progress, note=console.print,
        )  # fmt: skip
    Console(soft_wrap=True).print(table(found))
    if output is not None:
        console.print(f"wrote {output}")


def table(found: dict[str, Any]) -> "Table":
    """Return the table of a comparison; in 80 columns, each interval is one unbroken line below its rate."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from moa.evaluation.summary import COLUMNS, cells

    about = found["environment"]
    title = f"{found['model']['name']}, {about['dtype']}, {about['device']}, back-end {about['backend']}"
    out = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    every = [[cell.replace(" (", "\n(").replace(" to ", "–") for cell in cells(row)] for row in found["rows"]]
    for column, *column_cells in zip(COLUMNS, *every, strict=True):
        out.add_column(column, no_wrap=any("–" in cell for cell in column_cells), overflow="fold")
    for before, row, shown in zip([None, *found["rows"]], found["rows"], every, strict=False):
        if before and before["length"] != row["length"]:
            out.add_section()
        out.add_row(*shown)
    return out
