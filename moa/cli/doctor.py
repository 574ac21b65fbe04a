"""`moa doctor`: say what is installed, what would run here and why, and what a model and a plan would cost."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moa.cli.common import Json
from moa.plans.span import LONGEST

if TYPE_CHECKING:
    from moa.diagnosing import Check, Diagnosis, Machine
    from moa.report.figures import Figures


def command(
    model: Annotated[
        str | None, typer.Argument(help="Model: hub id, local folder or .gguf file; only its config is read.")
    ] = None,
    plan: Annotated[str | None, typer.Argument(help="Plan file or name of a shipped plan.")] = None,
    length: Annotated[
        int | None,
        typer.Option(help="Length of your texts, in tokens: say what the plan gains there.", min=1, max=LONGEST),
    ] = None,
    json_: Json = False,
) -> None:
    """Say what is installed, which back-end would run and why, whether it computes right, and what a plan would gain.

    The exit code is 1 when no back-end runs here or its self-test fails.

    Example: moa doctor HuggingFaceTB/SmolLM2-135M-Instruct smollm2-135m-instruct-0.25 --length 8192
    """
    from rich.console import Console

    import moa
    from moa.cli.common import print_json
    from moa.plans.file import title
    from moa.report.plan import costs

    console = Console(soft_wrap=True, highlight=False)
    found = moa.diagnose(model, plan, length)
    if json_:
        print_json(_figures(found))
        if not found.backend.right:
            raise typer.Exit(1)
        return
    console.print(_versions(found.machine))
    console.print(f"CPU: {found.machine.cores} cores, torch uses {found.machine.threads} threads")
    for index, card in enumerate(found.machine.cards):
        console.print(f"cuda:{index}: {card}")
    console.print(_backend(found.backend))
    if (prospect := found.prospect) is not None:
        info, longest = prospect.model, prospect.longest
        others = "".join(f", {count} are {kind}" for kind, count in info.others.items())
        console.print(
            f"{info.architecture}: {info.layers} layers, {len(info.ruled_layers)} of them take rules{others}; "
            f"{info.query_heads} query heads on "
            + (f"{info.kv_heads} KV heads" if not info.latent else "one latent vector of all")
            + f" of size {info.head_size}"
            + ("" if longest is None else f"; texts of up to {longest:,} tokens")
        )
        if info.others:
            shares = (f"{info.ruled_share(n):.0%} at {n:,} tokens" for n in prospect.lengths)
            console.print(f"share of the dense KV cache in the layers that take rules: {', '.join(shares)}")
        named = {title(plan) if plan else "dense": prospect.plan}
        console.print(costs(named, prospect.lengths, prospect.plan.kv_dtype))
        if prospect.here is not None:
            console.print(prospect.here.told())
        if plan is not None:
            console.print(prospect.told())
            if prospect.computed_by is not None:
                prefill, decode = prospect.computed_by
                console.print(f"prefill of this plan here: {prefill}; decode: {decode}")
    if not found.backend.right:
        raise typer.Exit(1)


def _figures(found: "Diagnosis") -> "dict[str, Any]":
    from dataclasses import asdict

    from moa.report.plan import figures

    told: dict[str, Any] = {
        "machine": asdict(found.machine), "backend": {**asdict(found.backend), "right": found.backend.right},
    }  # fmt: skip
    if (prospect := found.prospect) is not None:
        told |= {
            "longest": prospect.longest, "computed_by": prospect.computed_by,
            "here": None if prospect.here is None else asdict(prospect.here),
            "gains": [{"gains": gains, "lengths": list(lengths)} for gains, lengths in prospect.runs],
            **figures({"plan": prospect.plan}, prospect.lengths, prospect.plan.kv_dtype)[0],
        }  # fmt: skip
    return told


def _versions(machine: "Machine") -> "Figures":
    from moa.report.figures import Figures

    rows = [[package, version or "not installed"] for package, version in machine.packages.items()]
    return Figures(["package", "version"], rows, f"Python {machine.python}")


def _backend(check: "Check") -> str:
    from moa.diagnosing import CLOSE

    if check.name is None:
        return f"back-end here: none; {check.why}"
    sees = "a" if check.device == "cuda" else "no"
    return (
        f"back-end here: {check.name} (torch sees {sees} CUDA device{'; ' if check.why else ''}{check.why})\n"
        f"self-test against the reference: {'passed' if check.right else 'FAILED: do not use it'}; largest difference "
        f"{check.deviation:.1e}, at most {CLOSE:.0e} is right"
    )
