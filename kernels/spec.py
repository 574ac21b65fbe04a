"""Describe a back-end before it is imported: each folder has a `SPEC`, and `moa.kernels.registry` lists them."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

Ability = Literal["prefill", "decode", "read", "latent", "influence", "graph", "read-graph"]


@dataclass(frozen=True)
class Spec:
    """One back-end. None of this needs torch, so that help texts can name back-ends without loading it.

    Attributes:
        name: What users call it.
        module: The module with `attend`, `append` and `decode`, which `moa.kernels.call` documents, and with `warm_up`
            where the first call would have to wait for something.
        can: What it does: `prefill`, `decode`, `read` (decode steps that read only some pages), `latent` (it takes
            stores whose keys are their own values, and heads of more than 512 channels), `influence` (the profiler's
            backward pass in fused kernels, in `influence.py` beside the module), `graph` (its `decode` may lie in a
            graph of `torch.compile`), `read-graph` (its `read` may, too).
        devices: Types of device that it computes on, as torch calls them; none means any.
        title: What errors and pages call one of these devices, such as GPU; empty where it computes on any.
        packages: The packages that it needs besides those that moa always needs.
        hint: How to install them.
        optional: Whether the next choice stands in for it, by default, where its packages are missing; otherwise that
            is refused.
        emulation: The environment variable that, set to 1, lets it compute on any device, slowly.
    """

    name: str
    module: str
    can: tuple[Ability, ...]
    devices: tuple[str, ...] = ()
    title: str = ""
    packages: tuple[str, ...] = ()
    hint: str = ""
    optional: bool = False
    emulation: str = ""

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that it needs and that are not installed."""
        return tuple(package for package in self.packages if find_spec(package) is None)

    @property
    def emulated(self) -> bool:
        """Whether its emulation is switched on."""
        return bool(self.emulation) and os.environ.get(self.emulation) == "1"

    def takes(self, device: str | None) -> bool:
        """Return whether it is meant for this type of device; None asks whether it computes on any."""
        return not self.devices or device in self.devices
