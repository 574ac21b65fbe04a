"""`moa eval MODEL --plan PLAN`: measure what a plan costs in quality and saves in memory, beside the dense model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.cli import harness as harness_
from moa.cli.common import Backend, Dtype, Json, Model, Quiet
from moa.plans.errors import MoaError

if TYPE_CHECKING:
    from moa.report.figures import Figures


def command(
    model: Model,
    plan: Annotated[list[str] | None, typer.Option(help="Plan file or name of a shipped plan. Repeatable.")] = None,
    lengths: Annotated[str, typer.Option(help="Lengths to measure at, in tokens, separated by commas.")] = "1024,2048",
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=COUNT: number of samples per length of the task of this name. Default: the task's own. "
            "Repeatable."
        ),
    ] = None,
    task_data: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=FILE: local file of a task about a data set, as its authors publish it: SQuAD's JSON for qa_1, "
            "HotpotQA's for qa_2, LongBench's JSON lines for longbench:NAME. Default: the hub's. Repeatable."
        ),
    ] = None,
    needles: Annotated[int | None, typer.Option(help="Contexts with one needle: --task single=COUNT.")] = None,
    four_needles: Annotated[int | None, typer.Option(help="Contexts with four needles: --task four=COUNT.")] = None,
    ppl_windows: Annotated[int | None, typer.Option(help="Windows of held-out text: --task text=COUNT.")] = None,
    uniform: Annotated[
        bool, typer.Option(help="Also measure, for each plan, a uniform window of at least its density.")
    ] = True,
    harness: harness_.Tasks = None,
    harness_folder: harness_.Folder = None,
    harness_limit: harness_.Limit = None,
    harness_lengths: harness_.Lengths = None,
    backend: Backend = None,
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Results to write (.json).")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure perplexity, KL and needle retrieval of the dense model and of plans on the same samples.

    With -o, every result is also appended to OUTPUT.jsonl at once: if the command is stopped, run it again to continue.

    Example: moa eval HuggingFaceTB/SmolLM2-135M-Instruct --plan smollm2-135m-instruct-0.25 --lengths 2048 -o eval.json
    """
    from rich.console import Console

    import moa
    from moa.cli.common import Bar, by_name, messages, numbers, print_json
    from moa.evaluation.tasks import TASKS

    console, shown = messages(quiet), Console(soft_wrap=True)
    if harness:
        if task or task_data or {needles, four_needles, ppl_windows} != {None} or not uniform:
            raise MoaError("--harness runs the harness's tasks alone: give no samples of moa's own tasks with it")
        with Bar("evaluating", console) as progress:
            told = moa.evaluate_harness(
                model, plan or [], harness, folder=harness_folder, limit=harness_limit,
                lengths=None if harness_lengths is None else numbers("harness-lengths", harness_lengths),
                backend=backend, dtype=dtype, output=output, progress=progress,
            )  # fmt: skip
        if json_:
            print_json(told)
        else:
            shown.print(harness_.table(told))
        if output is not None:
            console.print(f"wrote {output}")
        return
    if (harness_folder, harness_limit, harness_lengths) != (None, None, None):
        raise MoaError("--harness-folder, --harness-limit and --harness-lengths are for --harness TASK")
    short = {"single": needles, "four": four_needles, "text": ppl_windows}
    given = [f"{name}={count}" for name, count in short.items() if count is not None] + (task or [])
    asked = {name: known.default for name, known in TASKS.items()} | by_name("--task is written NAME=COUNT", given, int)
    with Bar("evaluating", console) as progress:
        found = moa.evaluate_plans(
            model, plan or [], lengths=numbers("lengths", lengths), tasks=asked,
            data=by_name("--task-data is written NAME=FILE", task_data or [], Path), uniform=uniform, backend=backend,
            dtype=dtype, seed=seed, output=output, progress=progress, note=console.print,
        )  # fmt: skip
    if json_:
        print_json(found)
    else:
        shown.print(table(found))
        if found["effective_context"] and len({row["length"] for row in found["rows"]}) > 1:
            shown.print(effective(found))
    if output is not None:
        console.print(f"wrote {output}")


def table(found: dict[str, Any]) -> "Figures":
    """Return the table of a comparison; each interval is one line below its rate."""
    from moa.evaluation.summary import table as summed
    from moa.report.figures import Figures

    about = found["environment"]
    title = f"{found['model']['name']}, {about['dtype']}, {about['device']}, back-end {about['backend']}"
    headings, rows = summed(found["rows"])
    shown = [[cell.replace(" (", "\n(").replace(" to ", "–") for cell in row] for row in rows]
    return Figures(headings, shown, title, names=2)


def effective(found: dict[str, Any]) -> "Figures":
    """Return the table of effective context lengths; `at least` where no measured length is too long."""
    from moa.evaluation.effective import ENOUGH
    from moa.report.figures import Figures

    reached = found["effective_context"]
    longest = {task: max(row["length"] for row in found["rows"] if task in row) for task in reached}
    names = dict.fromkeys(row["row"] for row in found["rows"])
    rows = [
        [name, *(_reached(of[name], longest[task]) if name in of else "-" for task, of in reached.items())]
        for name in names
    ]
    title = f"Effective context length, tokens: as far as at least {ENOUGH:.0%} is found"
    return Figures(["row", *reached], rows, title)


def _reached(length: int, longest: int) -> str:
    return f"{'at least ' if length == longest else ''}{length:,}"
