"""The life of a cache: forward calls, crops, changes of its batch and copies, compared call by call."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moa import KVCache, Plan, Unsupported
from moa.plans.reading import SHORT

LIMIT = 700


class Life:
    """A batch of padded texts, the cache that holds them, and what the cache may be asked for."""

    def __init__(
        self, model: Any, plan: Plan, oracle: Callable[..., Tensor], batch: int, fixed: bool, seed: int,
        limit: int = LIMIT,
    ) -> None:  # fmt: skip
        """A life of `model`, which is under the plan, of up to `limit` columns; `oracle` maps a text to its logits."""
        self.model, self.plan, self.oracle, self.limit = model, plan, oracle, limit
        self.cache = KVCache(plan, limit if fixed else None)
        self.rng = np.random.default_rng(seed)
        self.ids = torch.zeros(batch, 0, dtype=torch.int64)
        self.real = torch.zeros(batch, 0, dtype=torch.bool)
        self.reads = torch.zeros(batch, 0, dtype=torch.bool)  # fed in a call with few tokens of its sequence
        self.top = 0  # the most columns since the last crop but those it took

    def extend(self, new: int, padding: str) -> None:
        """A forward call with `new` columns, compared row by row."""
        new = min(new, self.limit - self.ids.shape[1])
        if not new:
            return
        batch = len(self.ids)
        columns, pads = np.arange(new), self.rng.integers(0, new + 1, batch)[:, None]
        fresh = {
            "none": np.ones((batch, new), bool),
            "left": columns >= pads,
            "right": columns < pads,
            "some": self.rng.random((batch, new)) < 0.7,
        }[padding]
        self.real = torch.cat([self.real, torch.from_numpy(fresh)], 1)
        short = fresh.sum(1, keepdims=True) <= SHORT
        self.reads = torch.cat([self.reads, torch.from_numpy(short).expand(-1, new)], 1)
        self.ids = torch.cat([self.ids, torch.from_numpy(self.rng.integers(1, 61, (batch, new)))], 1)
        positions = (self.real.cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
        mask = None if self.real.all() else self.real.long()
        with torch.no_grad():
            found = self.model(
                self.ids[:, -new:],
                attention_mask=mask,
                position_ids=positions[:, -new:],
                past_key_values=self.cache,
            ).logits
        self.top = max(self.top, self.ids.shape[1])
        self.compare(found)

    def compare(self, found: Tensor) -> None:
        new = found.shape[1]
        for ids, real, reads, logits in zip(self.ids, self.real, self.reads, found, strict=True):
            count = int(real[-new:].sum())
            if count:
                expected = self.oracle(ids[real], reads[real].numpy())[-count:]
                torch.testing.assert_close(logits[real[-new:]], expected, rtol=0, atol=1e-10)

    def crop(self, columns: int) -> None:
        width = self.ids.shape[1]
        columns = min(columns, width)
        try:
            self.cache.crop(-columns)
        except Unsupported:
            assert self.top - (width - columns) > 64  # up to a block back from the farthest is always legal
            assert int(self.cache.get_seq_length()) == width
            return
        self.keep(lambda x: x[:, : width - columns])

    def choose(self, kind: str, order: int) -> None:
        """Reorder, repeat or select sequences."""
        batch = len(self.ids)
        if kind == "repeat" and batch <= 2:
            rows = torch.arange(batch).repeat_interleave(2)
            self.cache.batch_repeat_interleave(2)
        elif kind == "select":
            rows = torch.arange(batch)[order % batch :]
            self.cache.batch_select_indices(rows)
        else:
            rows = torch.from_numpy(self.rng.integers(0, batch, batch))
            self.cache.reorder_cache(rows)
        self.keep(lambda x: x[rows])

    def copy(self, new: int) -> None:
        """Go on with a copy, after the original has gone on by `new` columns."""
        before, twin = (self.ids, self.real, self.reads, self.top), copy.deepcopy(self.cache)
        self.extend(new, "none")
        self.cache, (self.ids, self.real, self.reads, self.top) = twin, before

    def keep(self, part: Callable[[Tensor], Tensor]) -> None:
        self.ids, self.real, self.reads = part(self.ids), part(self.real), part(self.reads)

    def check(self) -> None:
        """What must hold at any time."""
        lengths = self.real.sum(1).tolist()
        assert int(self.cache.get_seq_length()) == self.ids.shape[1]
        if self.cache.lengths is not None:
            assert self.cache.lengths.tolist() == lengths
