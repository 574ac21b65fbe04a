"""List the back-ends, for all code that names them, chooses one or says how to install one; torch is not needed."""

from moa.kernels.numba import SPEC as NUMBA
from moa.kernels.spec import Spec
from moa.kernels.torch import SPEC as TORCH
from moa.kernels.triton import SPEC as TRITON
from moa.plans.errors import Unsupported, brief

REFERENCE = Spec("reference", module="moa.kernels.reference", can=("prefill", "decode", "read", "latent"))

BACKENDS = (REFERENCE, TORCH, NUMBA, TRITON)
"""All back-ends; of those that take a device, the last one is its default."""

ANYWHERE = TORCH
"""The back-end that computes on every device and in every precision."""


def names() -> str:
    """Return the names of all back-ends, separated by commas."""
    return ", ".join(spec.name for spec in BACKENDS)


def find(name: str) -> Spec:
    """Return the back-end called `name`.

    Raises:
        Unsupported: There is none.
    """
    for spec in BACKENDS:
        if spec.name == name:
            return spec
    raise Unsupported(f"unknown back-end {brief(name)}: choose one of {names()}")


def reads_in_graphs(name: str) -> bool:
    """Return whether graphs of `torch.compile` may hold decode steps of a back-end that read only some pages."""
    return "read-graph" in find(name).can


def preferred(device: str | None) -> list[Spec]:
    """Return the back-ends for a type of device, or for any (None): the best first, `ANYWHERE` last."""
    return [spec for spec in reversed(BACKENDS) if spec.takes(device) and spec is not REFERENCE]


def alternatives(name: str, device: str | None) -> str:
    """Return what errors of back-end `name` offer instead: the installed ones for `device`, the best first."""
    return " or ".join(spec.name for spec in preferred(device) if spec.name != name and not spec.missing)


def default(device: str) -> Spec:
    """Return the back-end that a type of device gets unless the user asks for another."""
    return next(spec for spec in preferred(device) if not (spec.optional and spec.missing))


def optional_packages() -> tuple[str, ...]:
    """Return the packages that only some back-ends need."""
    return tuple(package for spec in reversed(BACKENDS) for package in spec.packages)
