"""Load back-ends by name. None stands in for another in silence: a refusal says what cannot run, and why."""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from moa.kernels import registry
from moa.kernels.call import Append, Attend, Decode, Read
from moa.plans.errors import Unsupported


def _nothing(
    heads: int, size: int, dtype: torch.dtype, capped: bool = False, sunk: bool = False, reads: bool = False
) -> None:
    pass


class Backend(NamedTuple):
    """One implementation of the operations that `moa.kernels.call` documents.

    `warm_up` prepares what the first step would otherwise wait for. It takes the query heads per KV head, the head
    size, the dtype of the cache, and whether there are a soft-cap, learned sinks, and rows that read only some pages.
    `read` is None where the back-end cannot do that. `summarises` says that `append` and `decode` also write the
    summaries of pages that the tokens fill, where the store has them, and that `read` decides on the device whether a
    row chooses; otherwise `moa.kernels.paged.calls` does both.

    `prefill_keydiff` computes what `moa.kernels.keydiff.prefill` computes, and `follow_keydiff` before a decode step
    what `Sinks.follow` computes, where all changing sinks hold the keys of `moa.kernels.keydiff.selection.scores`; both
    are None where the back-end leaves that to torch.
    """

    name: str
    attend: Attend
    append: Append
    decode: Decode
    warm_up: Callable[[int, int, torch.dtype, bool, bool, bool], None] = _nothing
    read: Read | None = None
    prefill_keydiff: Callable[..., Tensor] | None = None
    follow_keydiff: Callable[..., None] | None = None
    summarises: bool = False


def load(name: str, device: torch.device | None = None) -> Backend:
    """Return the back-end called `name`, one of `moa.kernels.registry`.

    Args:
        name: What users call it.
        device: The device to compute on; None checks only that it can run on some device of this machine.

    Raises:
        Unsupported: Unknown name, or it cannot run on this machine or device.
    """
    spec = registry.find(name)
    others = registry.alternatives(name, None if device is None else device.type)
    if spec.missing:
        raise Unsupported(f"back-end {name} needs the {spec.missing[0]} package: {spec.hint}, or choose {others}")
    if spec.devices and not spec.emulated:
        if not any(map(_visible, spec.devices)):
            emulate = f", or set {spec.emulation}=1" if spec.emulation else ""
            raise Unsupported(f"back-end {name} is for {spec.title}s, none is visible: choose {others}{emulate}")
        if device is not None and not spec.takes(device.type):
            raise Unsupported(f"back-end {name} is for {spec.title}s, the model is on {device.type}: choose {others}")
    try:
        module = import_module(spec.module)
    except ImportError as error:  # such as a numba that refuses the numpy there is
        raise Unsupported(f"back-end {name} cannot be imported, choose {others}: {error}") from error
    warm_up = getattr(module, "warm_up", _nothing)
    optional = {name: getattr(module, name, None) for name in ("read", "prefill_keydiff", "follow_keydiff")}
    summarises = getattr(module, "SUMMARISES", False)
    return Backend(
        name, module.attend, module.append, module.decode, warm_up, summarises=summarises, **optional
    )  # fmt: skip


def _visible(device: str) -> bool:
    """Return whether this process sees a device of the type; torch is built for some types alone."""
    try:
        return bool(torch.get_device_module(device).is_available())
    except RuntimeError:
        return False


def pick(device: torch.device | str) -> str:
    """Return the name of the back-end for tensors on `device`, unless asked for another."""
    return registry.default(torch.device(device).type).name


def influence(name: str) -> ModuleType | None:
    """Return the back-end's module of fused influence kernels; None where it has none (`moa.kernels.influence`)."""
    spec = registry.find(name)
    return import_module(f"{spec.module.rpartition('.')[0]}.influence") if "influence" in spec.can else None
