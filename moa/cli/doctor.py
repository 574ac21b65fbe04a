"""`moa doctor`: what is installed, what would run here and why, what a model and a plan would cost."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

import typer

from moa.plans.errors import Unsupported

if TYPE_CHECKING:
    from rich.table import Table

    from moa.plans.plan import Plan

PACKAGES = ("moa-attention", "torch", "transformers", "triton", "numpy", "scipy", "optuna", "gguf")
LENGTHS = (1024, 4096, 16384, 65536)


def command(
    model: Annotated[
        str | None, typer.Argument(help="Hub id, local folder or .gguf file; only its config is read.")
    ] = None,
    plan: Annotated[str | None, typer.Argument(help="Plan file or name of a shipped plan.")] = None,
) -> None:
    """Say what is installed, which back-end would run and why, and what a plan would cost."""
    import torch
    from rich.console import Console
    from rich.table import Table

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
    console.print(_backend())
    if model is not None:
        from moa.load import load_config
        from moa.plans.model import ModelInfo
        from moa.plans.plan import Plan

        info = ModelInfo.from_config(load_config(model))
        console.print(
            f"{info.architecture}: {info.layers} layers, {len(info.ruled_layers)} of them take rules; "
            f"{info.query_heads} query heads on {info.kv_heads} KV heads of size {info.head_size}"
        )
        chosen = Plan.dense(info) if plan is None else Plan.load(plan)
        chosen.check(info)
        console.print(_costs(chosen, plan or "dense"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _backend() -> str:
    import torch

    from moa.kernels.backend import load, pick

    device, sees = ("cuda", "a") if torch.cuda.is_available() else ("cpu", "no")
    name = pick(device)
    try:
        load(name)
    except Unsupported as error:
        return f"back-end here: none; {error}"
    return f"back-end here: {name} (torch sees {sees} CUDA device)"


def _costs(plan: "Plan", title: str) -> "Table":
    from rich.table import Table

    table = Table("tokens", "density", "KV cache, MiB", "dense, MiB", title=f"{title}: batch 1, bfloat16")
    for n in LENGTHS:
        kept = plan.kv_bytes(n, dtype="bfloat16") / 2**20
        whole = plan.model.dense_kv_bytes(n, dtype="bfloat16") / 2**20
        table.add_row(f"{n:,}", f"{plan.density(n):.3f}", f"{kept:.1f}", f"{whole:.1f}")
    return table
