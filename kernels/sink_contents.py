"""Say which keys sinks hold: the names that patterns give (`Rule.holds`) and how the keys of each are chosen."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import Tensor

from moa.kernels.keydiff import selection
from moa.plans.span import FIRST_KEYS, KEYDIFF

SCORES: dict[str, selection.Scores | None] = {FIRST_KEYS: None, KEYDIFF: selection.scores}
"""By name, the scores by which `moa.kernels.keydiff` chooses keys, in profiles and runs; None is the first keys."""

History = Callable[[Tensor, int, int], Tensor]
"""Keys [kv_heads, n, D], slots and tokens from edge to edge to the positions that the sink holds at every edge."""


class Sink(NamedTuple):
    """A sink to measure: its slots, a multiple of 64, and which keys they hold; None is the first keys."""

    slots: int
    history: History | None = None


def history(holds: str) -> History | None:
    """Return what sinks hold that hold the keys of that name; None is the first keys."""
    scores = SCORES[holds]
    return None if scores is None else partial(selection.history, scores_of=scores)


def sinks(holds: str, *slots: int) -> tuple[Sink, ...]:
    """Return sinks of these sizes that hold the keys of that name."""
    return tuple(Sink(size, history(holds)) for size in slots)
