"""Read a text once for all rows that keep the same of it: until they decode, they do the same."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch

from moa.evaluation.rows import Row
from moa.plans.plan import Plan
from moa.runtime.cache import KVCache
from moa.runtime.variant import Variant

T = TypeVar("T")
Kept = tuple[str | None, str | None]
"""Back-end, and fingerprint of what is kept; None for the dense model."""


class Prefills(Generic[T]):
    """Hands out caches that have read one text, each for one row, in the order of the rows.

    Rows that keep the same differ only in what short calls read, so one prefill serves all of them that run on one
    back-end: its pages have summaries in every layer, and each row gets a copy with its own rules.
    """

    def __init__(self, model: Any, rows: Sequence[Row], room: int, read: Callable[[Any], T]) -> None:
        """Prepare for some rows.

        Args:
            model: The model.
            rows: The rows to come.
            room: Tokens that caches need room for.
            read: Runs the text into an empty cache of the model, which is under the row's plan, and returns what the
                row needs of it.
        """
        self._model, self._room, self._read = model, room, read
        same = [kept(row) for row in rows]
        self._left = Counter(same)
        self._reads = {each for each, row in zip(same, rows, strict=True) if row.plan is not None and row.plan.reads()}
        self._shared: dict[Kept, tuple[KVCache, T]] = {}

    @torch.inference_mode()
    def under(self, row: Row) -> tuple[Any, T]:
        """Return a cache of the row that has read the text, and what `read` returned."""
        same = kept(row)
        if row.plan is None or (self._left[same] == 1 and same not in self._shared):
            return self._run(row.variant)
        if same not in self._shared:
            plan = summarised(row.plan) if same in self._reads else row.plan
            self._shared[same] = self._run(Variant(plan, backend=row.backend))
        cache, found = self._shared[same]
        self._left[same] -= 1
        if not self._left[same]:
            del self._shared[same]
        return cache.copy_for(row.plan), found

    def _run(self, variant: Variant) -> tuple[Any, T]:
        with variant.on(self._model):
            cache = variant.cache(self._model, self._room)
            return cache, self._read(cache)


def kept(row: Row) -> Kept:
    """Return what is equal for rows that keep the same on the same back-end, whatever they read."""
    return row.backend, None if row.plan is None else row.plan.whole.fingerprint()


def summarised(plan: Plan) -> Plan:
    """Return a plan that keeps the same, with summaries in every layer."""
    return Plan.from_rules(plan.model, {n: [rule.reading(1) for rule in of] for n, of in plan.groups.items()})
