"""Run tasks of the lm-evaluation-harness for `moa eval --harness`, and print them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from moa.report.figures import Figures

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--harness",
        help="Task or group of the lm-evaluation-harness (lm_eval) to run instead of moa's own. Repeatable.",
    ),
]
Folder = Annotated[Path | None, typer.Option(help="With --harness: folder with more tasks, in the harness's YAML.")]
Limit = Annotated[int | None, typer.Option(help="With --harness: samples of each task at most. Default: all.", min=1)]

Lengths = Annotated[
    str | None,
    typer.Option(
        help="With --harness: lengths of tasks that are written to a length, as RULER's, in tokens, separated by "
        "commas. Default: the harness's own."
    ),
]


def table(found: dict[str, Any]) -> "Figures":
    """Return the table of all metrics, with standard errors; a column is a row of the evaluation."""
    from moa.report.figures import Figures

    rows = found["rows"]
    about = found["environment"]
    metrics = [(task, metric) for task, of in rows[0]["tasks"].items() for metric in of]
    cells = [[task, metric, *(_cell(row["tasks"][task][metric]) for row in rows)] for task, metric in metrics]
    title = f"{found['model']}, {about['dtype']}, {about['device']}, back-end {about['backend']}"
    return Figures(["task", "metric", *(row["row"] for row in rows)], cells, title, names=2)


def _cell(of: dict[str, float | None]) -> str:
    return f"{of['value']:.4g}" + ("" if of["stderr"] is None else f" ± {of['stderr']:.2g}")
