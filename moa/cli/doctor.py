"""`moa doctor`: what is installed, what would run here and why, what a model and a plan would cost."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from moa.kernels.registry import optional_packages, preferred
from moa.plans.errors import MoaError, Unsupported
from moa.plans.span import LONGEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from moa.plans.plan import Plan

PACKAGES = ("moa-attention", "torch", "transformers", *optional_packages(), "numpy", "scipy", "optuna", "gguf")
LENGTHS = (1024, 4096, 16384, 65536)
CLOSE = 1e-4
"""Largest difference to the reference that a back-end may have in float32."""
WORTH = 0.95
"""A plan gains something where it keeps at most this part of attention's work, of the keys read, or of the memory."""


def command(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, local folder or .gguf file; only its config is read.")
    ] = None,
    plan: Annotated[str | None, typer.Argument(help="Plan file or name of a shipped plan.")] = None,
    length: Annotated[
        int | None, typer.Option(help="Your texts' length, tokens: what the plan gains there.", min=1, max=LONGEST)
    ] = None,
) -> None:
    """Say what is installed, which back-end would run and why, whether it computes right, what a plan would gain.

    Exit code 1 when no back-end runs here or its self-test fails.
    """
    import torch
    from rich.console import Console
    from rich.table import Table

    if length is not None and plan is None:
        raise MoaError("--length says what a plan gains there: give a model and a plan")
    console = Console(soft_wrap=True, highlight=False)
    versions = Table("package", "version", title=f"Python {platform.python_version()}, {platform.machine()}")
    for package in PACKAGES:
        versions.add_row(package, _version(package))
    console.print(versions)
    console.print(f"CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        memory = card.total_memory / 2**30
        console.print(f"cuda:{index}: {card.name}, {memory:.0f} GiB, compute {card.major}.{card.minor}")
    verdict, right = _backend()
    console.print(verdict)
    if model is not None:
        from moa.hf.load import load_config
        from moa.plans.config import longest_text
        from moa.plans.model import ModelInfo
        from moa.plans.plan import Plan

        config = load_config(model)
        info, longest = ModelInfo.of(config), longest_text(config)
        if length is not None and longest is not None and length > longest:
            raise MoaError(f"length {length} is over the model's maximum of {longest} tokens")
        console.print(
            f"{info.architecture}: {info.layers} layers, {len(info.ruled_layers)} of them take rules; "
            f"{info.query_heads} query heads on {info.kv_heads} KV heads of size {info.head_size}"
            + ("" if longest is None else f"; texts of up to {longest:,} tokens")
        )
        chosen = Plan.dense(info) if plan is None else Plan.load(plan)
        chosen.check(info)
        asked = {longest or LENGTHS[-1]} if length is None else {length}
        shown = sorted(asked | {n for n in LENGTHS if longest is None or n <= longest})
        console.print(_costs(chosen, plan or "dense", shown))
        if plan is not None:
            if length is not None:
                console.print(_gain(chosen, length))
            console.print(_where(chosen, length))
    if not right:
        raise typer.Exit(1)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _backend() -> tuple[str, bool]:
    """Which back-end would run and why, its self-test's outcome, and whether there is one that passed."""
    import torch

    from moa.bench.selftest import deviation
    from moa.kernels.backend import load, pick

    device, sees = ("cuda", "a") if torch.cuda.is_available() else ("cpu", "no")
    name = pick(device)
    try:
        backend = load(name)
    except Unsupported as error:
        return f"back-end here: none; {error}", False
    found = deviation(backend, device)
    verdict = "passed" if found <= CLOSE else "FAILED: do not use it"
    better = preferred(device)[0]
    slower = "" if better.name == name else f"; decode is faster with {better.name}: {better.hint}"
    return (
        f"back-end here: {name} (torch sees {sees} CUDA device{slower})\n"
        f"self-test against the reference: {verdict}; largest difference {found:.1e}, at most {CLOSE:.0e} is right"
    ), found <= CLOSE


def _costs(plan: "Plan", title: str, lengths: "Sequence[int]") -> "Table":
    from rich.table import Table

    columns = "density", "prefill kept", "KV cache, MiB", "dense, MiB", "saved, MiB"
    table = Table("tokens", *columns, title=f"{title}: batch 1, {plan.kv_dtype}")
    for n in lengths:
        kept = plan.kv_bytes(n, dtype=plan.kv_dtype) / 2**20
        whole = plan.model.dense_kv_bytes(n, dtype=plan.kv_dtype) / 2**20
        shares = f"{plan.density(n):.3f}", f"{plan.prefill_fraction(n):.3f}"
        table.add_row(f"{n:,}", *shares, f"{kept:.1f}", f"{whole:.1f}", f"{whole - kept:.1f}")
    return table


def _kept(plan: "Plan", n: int) -> dict[str, float]:
    memory = plan.kv_bytes(n) / plan.model.dense_kv_bytes(n)
    return {"prefill's attention": plan.prefill_fraction(n), "keys read per step": plan.density(n), "KV memory": memory}


def _gain(plan: "Plan", n: int) -> str:
    kept = _kept(plan, n)
    shares = ", ".join(f"{share:.2f} of {what}" for what, share in kept.items())
    gains = "gains nothing" if min(kept.values()) > WORTH else "gains"
    return f"at {n:,} tokens this plan {gains}: it keeps {shares}"


def _where(plan: "Plan", length: int | None) -> str:
    """At which lengths there is a gain, of powers of two and `length`: figures change slowly between them.

    A gain may end: a plan that drops as many tokens at every length drops next to nothing of a long text.
    """
    lengths = sorted({*(2**power for power in range(7, 21)), length or 128})
    runs = [(gains, list(run)) for gains, run in groupby(lengths, lambda n: min(_kept(plan, n).values()) <= WORTH)]
    if runs == [(False, lengths)]:
        return f"this plan gains nothing up to {lengths[-1]:,} tokens"
    before = "" if runs[0][0] else f"nothing at {runs[0][1][-1]:,} tokens and below; "
    return f"{before}this plan gains {' and '.join(_run(run, lengths[-1]) for gains, run in runs if gains)}"


def _run(lengths: "Sequence[int]", longest: int) -> str:
    """Lengths that follow one another, in words."""
    if lengths[-1] == longest:
        return f"at {lengths[0]:,} tokens and above"
    if len(lengths) == 1:
        return f"at {lengths[0]:,} tokens"
    return f"between {lengths[0]:,} and {lengths[-1]:,} tokens"
