"""Define the options that `moa search` and `moa refine` share, and print the plan that either finds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from moa.finding import Timed
    from moa.plans.plan import Plan
    from moa.search.question import Options, Question
    from moa.search.solver import Solution

TIMES = "T@LENGTH[xBATCH]: largest time of a {}, in milliseconds, predicted from --costs. Repeatable."

Density = Annotated[
    list[str] | None,
    typer.Option(
        help="D or D@LENGTH: largest density. D alone holds at the longest length that the plan is for. Repeatable."
    ),
]
Read = Annotated[
    list[str] | None,
    typer.Option(
        help="D or D@LENGTH: largest part of all keys' and values' bytes that a decode step reads. Repeatable."
    ),
]
Memory = Annotated[
    list[str] | None, typer.Option(help="G@LENGTH[xBATCH]: largest KV cache, in 10^9 bytes of --kv-dtype. Repeatable.")
]
Stored = Annotated[
    str | None, typer.Option(help="Dtype of the cache: float32, bfloat16, float16, ... Default: that of the profile.")
]
Decode = Annotated[list[str] | None, typer.Option(help=TIMES.format("decode step"))]
Prefill = Annotated[list[str] | None, typer.Option(help=TIMES.format("prefill"))]
Measured = Annotated[Path | None, typer.Option("--costs", help="File of costs, made by `moa measure`.")]
Minimise = Annotated[
    str | None,
    typer.Option(
        help="KIND@LENGTH[xBATCH]: cost to minimise under --max-harm; density, read, kv_gb, decode_ms or prefill_ms."
    ),
]
Lengths = Annotated[
    str | None, typer.Option(help="Profiled lengths that the plan is for, such as 2048. Default: all of them.")
]
Longest = Annotated[
    int | None,
    typer.Option(
        help="Longest text that the plan is for, in tokens. Default: 4 times the longest profiled length, if the model "
        "takes as much; with --lengths, the longest of those."
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(help="SOURCE=WEIGHT: weight of a source of calibration text. Default: 1. Repeatable."),
]
Patterns = Annotated[
    list[str] | None, typer.Option(help="Pattern to choose from. Default: all that were profiled. Repeatable.")
]
KeepAll = Annotated[
    bool,
    typer.Option(
        "--keep-all",
        help="Keep everything in every group, and choose only what steps read, by --max-read or --max-decode-ms.",
    ),
]
Seconds = Annotated[float, typer.Option(help="Largest time for the solver, in seconds per plan.")]


def budgets(
    *, density: list[str] | None, kv_gb: list[str] | None, decode_ms: list[str] | None, prefill_ms: list[str] | None,
    harm: str | None, read: list[str] | None = None,
) -> dict[str, list[str]]:  # fmt: skip
    """Return the budgets that were given, by kind."""
    given = {"density": density, "read": read, "kv_gb": kv_gb, "decode_ms": decode_ms, "prefill_ms": prefill_ms}
    return {kind: texts for kind, texts in {**given, "harm": None if harm is None else [harm]}.items() if texts}


def options(
    *, minimise: str | None, costs: Path | None, lengths: str | None, max_length: int | None,
    source_weight: list[str] | None, pattern: list[str] | None, kv_dtype: str | None, keep_all: bool, time_limit: float,
) -> "Options":  # fmt: skip
    """Return the options as keyword arguments of `moa.find_plan` and `moa.refine_plan`."""
    from moa.cli.common import by_name, numbers

    weights = by_name("a source weight is written SOURCE=WEIGHT", source_weight or [], float)
    return {
        "minimise": minimise, "costs": costs, "lengths": None if lengths is None else numbers("lengths", lengths),
        "max_length": max_length, "source_weights": weights, "patterns": pattern,
        "kv_dtype": kv_dtype, "keep_all": keep_all, "time_limit": time_limit,
    }  # fmt: skip


def assumed(question: "Question", profile: Path, kv_dtype: str | None) -> str:
    """Return a line about the dtype that is assumed; empty if the user or the profile names one."""
    if kv_dtype is not None or question.profile.dtype is not None:
        return ""
    return f"{profile} names no dtype: the cache is counted in {question.kv_dtype}; --kv-dtype names another"


def figures(plan: "Plan", solution: "Solution", times: "Sequence[Timed]" = ()) -> dict[str, Any]:
    """Return what a search found, in JSON types."""
    assert plan.predicted is not None  # of a search
    return {
        "plan": plan.fingerprint(), "objective": solution.value, "gap": solution.gap, "seconds": solution.seconds,
        "predicted": plan.predicted.model_dump(mode="json", exclude_none=True),
        "times": [
            {**asdict(each.work), "predicted": each.predicted, "measured": each.measured} for each in times
        ],
    }  # fmt: skip


def show(plan: "Plan", question: "Question", times: "tuple[Timed, ...]", note: str, console: "Console") -> None:
    """Print what a plan keeps at each length, and the times predicted for it."""
    for line in [*question.kept(plan), *filter(None, [note])]:
        console.print(f"  {line}")
    for each in times:
        why = (
            ""
            if each.why is None
            else ", minimised"
            if each.why is question.minimise
            else f", budget {each.why.most:g}"
        )
        line = f"  {each.work}: {each.predicted:.1f} ms predicted{why}"
        if each.measured is not None:
            line += f", {each.measured:.1f} ms measured, prediction off by {each.error:+.1%}"
        console.print(line)
    if question.costs is not None:
        errors = ", ".join(f"{kind} {error:.1%}" for kind, error in question.costs.error.items())
        console.print(f"  costs of {question.costs.place}; median error of the fit {errors}")
        if said := question.left_out():
            console.print(f"  {said}")
