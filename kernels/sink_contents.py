"""Say which keys sinks hold when harm is measured: the names that patterns give (`Rule.holds`) and their meaning."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from moa.kernels.keydiff.selection import history

History = Callable[[Tensor, int, int], Tensor]
"""Keys [kv_heads, n, D], slots and tokens from edge to edge to the positions that the sink holds at every edge."""

HISTORIES: dict[str, History | None] = {"first": None, "keydiff": history}
"""What sinks hold, by name; None is the first keys of the text."""


class Sink(NamedTuple):
    """A sink to measure: its slots, a multiple of 64, and which keys they hold; None is the first keys."""

    slots: int
    history: History | None = None


def sinks(holds: str, *slots: int) -> tuple[Sink, ...]:
    """Return sinks of these sizes that hold the keys of that name."""
    return tuple(Sink(size, HISTORIES[holds]) for size in slots)
