"""Define the ways to run a model, dense or under a plan, with the caches that they use."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from moa.plans.plan import Plan
from moa.runtime import stock
from moa.runtime.applied import apply
from moa.runtime.cache import KVCache


@dataclass(frozen=True)
class Variant:
    """A way to run a model: dense or under a plan, with a growing or a fixed cache.

    Attributes:
        plan: The plan, or None for the model as it comes.
        fixed: Whether its cache is allocated once (`KVCache` with max_length, `StaticCache`) or grows.
        backend: Name of the back-end; by default the one for the device.
    """

    plan: Plan | None = None
    fixed: bool = False
    backend: str | None = None

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """Return a context in which `model` runs this way, in place."""
        if self.plan is None:
            yield
        else:
            with apply(model, self.plan, self.backend):
                yield

    def cache(self, model: Any, room: int) -> Any:
        """Return an empty cache for texts of up to `room` tokens."""
        if self.plan is not None:
            return KVCache(self.plan, room if self.fixed else None)
        return StaticCache(config=model.config, max_cache_len=room) if self.fixed else DynamicCache(config=model.config)


def allocated_bytes(cache: Cache) -> int:
    """Return the bytes allocated for keys and values by a `KVCache`, `DynamicCache` or `StaticCache`."""
    if isinstance(cache, KVCache):
        return cache.nbytes
    return sum(map(stock.kv_bytes, cache.layers))
