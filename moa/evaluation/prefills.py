"""Read a text once for all rows that keep everything of it: until they decode, they do the same."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Generic, TypeVar

import torch

from moa.evaluation.rows import Row
from moa.plans.patterns import FULL
from moa.plans.plan import Plan
from moa.runtime.cache import KVCache
from moa.runtime.variant import Variant

T = TypeVar("T")


class Prefills(Generic[T]):
    """Hands out caches that have read one text, each for one row, in the order of the rows.

    Rows whose rules all keep everything differ only in what short calls read, so one prefill serves all of them that
    run on one back-end: its pages have summaries in every layer, and each row gets a copy with its own rules.
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
        alike = [row for row in rows if keeps_all(row)]
        self._left = Counter(row.backend for row in alike)
        reads = any(row.plan.reads() for row in alike if row.plan is not None)
        self._rule = FULL.reading(1) if reads else FULL
        self._shared: dict[str | None, tuple[KVCache, T]] = {}

    @torch.inference_mode()
    def under(self, row: Row) -> tuple[Any, T]:
        """Return a cache of the row that has read the text, and what `read` returned."""
        if not keeps_all(row) or (self._left[row.backend] == 1 and row.backend not in self._shared):
            return self._run(row.variant)
        assert row.plan is not None
        if row.backend not in self._shared:
            plan = Plan.from_rules(row.plan.model, {}, defaults=self._rule)
            self._shared[row.backend] = self._run(Variant(plan, backend=row.backend))
        cache, found = self._shared[row.backend]
        self._left[row.backend] -= 1
        if not self._left[row.backend]:
            del self._shared[row.backend]
        return cache.copy_for(row.plan), found

    def _run(self, variant: Variant) -> tuple[Any, T]:
        with variant.on(self._model):
            cache = variant.cache(self._model, self._room)
            return cache, self._read(cache)


def keeps_all(row: Row) -> bool:
    """Return whether all rules of a row's plan keep everything, whatever they read."""
    rules = () if row.plan is None else chain.from_iterable(row.plan.groups.values())
    return row.plan is not None and all(rule.whole == FULL for rule in rules)
