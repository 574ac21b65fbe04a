"""Describe what a measurement depends on apart from model and plan: machine, versions, dtype, back-end."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment(model: Any = None, backend: str | None = None) -> dict[str, str | int]:
    """Return a description of the machine and the software that this process measures with, for files of results.

    Args:
        model: The loaded model, for its device and dtype; None describes the CPU.
        backend: Back-end of the plans, None for the device's own.

    Returns:
        `device`, `threads`, `python` and the versions of packages; with a model also `dtype` and `backend`.
    """
    import torch

    from moa.kernels.backend import pick

    cuda = model is not None and model.device.type == "cuda"
    about: dict[str, str | int] = {
        "device": torch.cuda.get_device_name(model.device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if model is not None:
        about |= {"dtype": str(model.dtype).removeprefix("torch."), "backend": backend or pick(model.device)}
    versions = {name: version(name) for name in ("moa-attention", "torch", "transformers")}
    return {**about, "python": platform.python_version(), **versions}


def cpu_name() -> str:
    """Return the model of the CPU: times measured on another one do not apply."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "") or platform.processor() or f"{platform.machine()} CPU"
