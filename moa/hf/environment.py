"""Describe what a measurement depends on apart from model and plan: machine, versions, dtype, back-end."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def environment(model: Any = None, backend: str | None = None, device: Any = None) -> dict[str, str | int]:
    """Return a description of the machine and the software that this process measures with, for files of results.

    Args:
        model: The loaded model, for its device and dtype.
        backend: Back-end of the plans, None for the device's own.
        device: The torch device of a measurement without a model; None is the CPU.

    Returns:
        `device`, `threads`, `python` and the versions of packages; with a model also `dtype` and `backend`.
    """
    import torch

    from moa.kernels.backend import pick

    place = device if model is None else model.device
    cuda = place is not None and place.type == "cuda"
    about: dict[str, str | int] = {
        "device": torch.cuda.get_device_name(place) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if model is not None:
        about |= {"dtype": str(model.dtype).removeprefix("torch."), "backend": backend or pick(model.device)}
    return {**about, "python": platform.python_version(), **_versions("moa-attention", "torch", "transformers")}


def _versions(*names: str) -> dict[str, str]:
    """Return the versions of those packages that are installed: kernels alone can be measured without transformers."""
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def cpu_name() -> str:
    """Return the model of the CPU: times measured on another one do not apply."""
    return _cpu("model name") or platform.processor() or f"{platform.machine()} CPU"


def multiplies_bfloat16() -> bool:
    """Return whether the CPU has instructions for products in bfloat16; False where Linux does not say so."""
    flags = _cpu("flags") or _cpu("Features")  # on x86, on ARM
    return not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags.split())


def _cpu(entry: str) -> str:
    """Return what Linux says of the first CPU under this name, or nothing."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")
