"""What a layer launches, counted on tensors without values, of which nothing could wait for one."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moa.kernels.backend import load
from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities

PAGES = ["append", "decode", "page_scores", "page_choice", "page_scores", "page_choice", "read", "join"]
KERNELS = {
    "prefill": ("prefill",), "append": ("append",), "decode": ("decode", "join"),
    "changing_prefill": ("scores", "exits", "table", "keep"), "changing_decode": ("scores", "leave", "put"),
    "read": ("page_scores", "page_choice", "read"),
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts the operations of torch that launch a kernel: all but views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in func.__name__:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """All launches, those of the Triton kernels by name."""
    found = Launches()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(size > 0 for size in grid)
            return lambda *_, **__: found.names.append(self.name)

    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(import_module(f"moa.kernels.triton.{module}"), f"{name}_kernel", Kernel(name))
    return found


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("length", [8192, 32768])
@pytest.mark.parametrize(("holds", "prefill"), [
    ("keydiff", ["scores", "exits", "table", "prefill", "keep", "append", "put"]), ("first", ["prefill", "append"]),
])  # fmt: skip
def test_a_layer_launches_as_much_at_every_length(
    kit: Any, launches: Launches, holds: str, prefill: list[str], length: int, reads: bool
) -> None:
    """A prefill, of a layer with groups of both kinds, and a step after it; at most 20 launches each."""
    rules = kit.Rules(np.array([64, 128, 64]), np.array([256, 512, 0]), np.array([0, 0, 256]))
    device = torch.device("meta")
    store = allocate(capacities(rules.reach, np.array([length + 64])), 128, torch.bfloat16, device, summaries=reads)
    seen = Visibility(*(x.to(device) for x in rules.seen(length + 64)))
    sinks = reading = None
    if holds == "keydiff":
        sinks = Sinks(rules.sink, (holds, holds, "first"), rules.first_at, 1, device)
    if reads:
        reading = Reading(*(torch.empty(3, dtype=torch.int32, device=device) for _ in range(2)))
    for new in (length, 1):
        q, k, v = (torch.empty(new, heads, 128, dtype=torch.bfloat16, device=device) for heads in (12, 3, 3))
        offsets, before = (torch.empty(n, dtype=t, device=device) for n, t in ((2, torch.int32), (1, torch.int64)))
        batch = Packed(offsets, before, new, True, (np.array([0 if new > 1 else length]), np.array([new])))
        launches.names.clear()
        with launches:
            attend(
                q, k, v, batch=batch, seen=seen, store=store, softmax=Softmax(0.1), backend=load("triton"),
                sinks=sinks, grown=lambda: store, reading=reading,
            )  # fmt: skip
        own = [name for name in launches.names if "." not in name]
        moves = ["scores", "leave", "put"] if holds == "keydiff" else []
        assert own == (prefill if new > 1 else [*moves, *(PAGES if reads else ["decode", "join"])])
        assert len(launches.names) <= 20, launches.names
        if new == 1 and reads:
            assert launches.names == own  # nothing of torch's, so nothing that could wait
