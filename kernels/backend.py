"""The back-ends by name. None stands in for another in silence: what cannot run is refused, and why."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from moa.plans.errors import Unsupported, brief

MODULES = {
    "reference": "moa.kernels.reference",
    "torch": "moa.kernels.sdpa",
    "numba": "moa.kernels.numba",
    "triton": "moa.kernels.triton",
}


def _nothing(heads: int, size: int, dtype: torch.dtype) -> None:
    pass


class Backend(NamedTuple):
    """One implementation of the three operations; `moa.kernels.reference` documents their arguments.

    `ready` makes ahead what the first step would wait for: (query heads per KV head, head size, dtype of the cache).
    """

    name: str
    attend: Callable[..., Tensor]
    append: Callable[..., None]
    step: Callable[..., Tensor]
    ready: Callable[[int, int, torch.dtype], None] = _nothing


def load(name: str) -> Backend:
    """The back-end called `name`: reference, torch, numba or triton.

    Raises:
        Unsupported: Unknown name, or it cannot run on this machine.
    """
    if name not in MODULES:
        raise Unsupported(f"unknown back-end {brief(name)}: choose one of {', '.join(MODULES)}")
    if name == "triton":
        _require_triton()
    if name == "numba" and find_spec("numba") is None:
        raise Unsupported("back-end numba needs the numba package: pip install 'moa-attention[cpu]', or choose torch")
    try:
        module = import_module(MODULES[name])
    except ImportError as error:  # such as a numba that refuses the numpy there is
        raise Unsupported(f"back-end {name} cannot be imported, choose torch: {error}") from error
    return Backend(name, module.attend, module.append, module.step, getattr(module, "ready", _nothing))


def pick(device: torch.device | str) -> str:
    """The name of the back-end for tensors on `device`: triton on GPUs, numba on CPUs where installed, else torch."""
    kind = torch.device(device).type
    return "triton" if kind == "cuda" else "numba" if kind == "cpu" and find_spec("numba") else "torch"


def _require_triton() -> None:
    if find_spec("triton") is None:
        raise Unsupported("back-end triton needs the triton package: pip install 'moa-attention[gpu]', or choose torch")
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise Unsupported("back-end triton needs a GPU, none is visible: choose torch, or set TRITON_INTERPRET=1")
