"""`moa show PLAN [PLAN2]`: draw a plan, or compare two."""

from pathlib import Path
from typing import Annotated

import typer

from moa.cli.common import Json


def command(
    plan: Annotated[str, typer.Argument(help="Plan file or name of a shipped plan.")],
    other: Annotated[
        str | None, typer.Argument(help="Second plan, to compare with the first.", metavar="[PLAN2]")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths to show, in tokens. Default: those that the plan was made for, or 1024,4096."),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="Dtype of the KV cache. Default: that of the plan's search, else bfloat16.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Also draw what is kept, and read where that is less, into this PNG file.")
    ] = None,
    json_: Json = False,
) -> None:
    """Draw the span of every layer and KV head and print what a plan costs; with two plans, compare them.

    With --json, what each plan costs and the rule of every head.

    Example: moa show smollm2-135m-instruct-0.25 --lengths 1024,8192
    """
    from rich.columns import Columns
    from rich.console import Console

    from moa.cli.common import choice, numbers, print_json
    from moa.outputs import writable
    from moa.plans.file import title
    from moa.plans.model import DTYPES
    from moa.plans.plan import Plan
    from moa.report import plan as report

    stored = choice("--kv-dtype", kv_dtype, DTYPES)

    paths = [plan] if other is None else [plan, other]
    names = list(map(title, paths))
    numbered = names if other is None else [f"{i} {name}" for i, name in enumerate(names, 1)]
    plans = dict(zip(numbered, map(Plan.load, paths), strict=True))
    loaded = list(plans.values())
    report.same_model(loaded)
    made_for = loaded[0].predicted.lengths if loaded[0].predicted else (1024, 4096)
    shown = tuple(sorted(set(made_for))) if lengths is None else numbers("lengths", lengths)
    if png is not None:
        writable(png, "PNG", report.is_png)
        report.picture(plans, shown, png)
    console = Console(highlight=False)
    if json_:
        print_json(report.figures(plans, shown, stored or loaded[0].kv_dtype))
        return
    costs = report.costs(plans, shown, stored or loaded[0].kv_dtype)
    console.print(costs, *(report.rules(p, shown, name) for name, p in plans.items()), sep="\n")
    maps = [report.span_map(p, shown, name) for name, p in plans.items()]
    if other is None:
        console.print(*maps, report.LEGEND, sep="\n")
    else:
        maps.append(report.difference_map(loaded[0], loaded[1], shown))
        console.print(Columns(maps), report.LEGEND, report.SIGNS_LEGEND, sep="\n")
        console.print(report.differences(loaded[0], loaded[1], shown))
    if png is not None:
        console.print(f"wrote {png}", soft_wrap=True, markup=False)
