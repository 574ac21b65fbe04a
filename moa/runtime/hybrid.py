"""Provide cache layers with rules that keep a state beside their keys, for layers that attend and scan (Falcon-H1)."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from moa.runtime.batch import BatchState
from moa.runtime.fixed import FixedPlanLayer
from moa.runtime.layer import PlanLayer
from moa.runtime.rules import Rules


class _WithState(LinearAttentionLayer):  # type: ignore[misc]  # transformers has no types
    """Transformers' layer of states, in front of a layer of keys among the bases of a class: each does its part."""

    is_compileable = False

    def __init__(self, *args: Any) -> None:
        LinearAttentionLayer.__init__(self)
        self._keys.__init__(*args)

    @property
    def _keys(self) -> Any:
        """The methods of the layer of keys."""
        return super(LinearAttentionCacheLayerMixin, self)

    def lazy_initialization(self, *keys: Tensor, **states: Any) -> None:
        """Learn batch size, dtype and device of keys and values, or of a state, which is given by name."""
        if keys:
            self._keys.lazy_initialization(*keys)
        else:
            LinearAttentionLayer.lazy_initialization(self, **states)

    def get_max_length(self) -> int:
        """Return the largest number of columns that the keys can have; -1 where there is no limit."""
        return int(self._keys.get_max_length())

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` columns; `KVCache.crop` has checked that the state allows it."""
        self._keys.crop(tokens_to_remove)
        if self.record_past and any(self.is_conv_states_initialized.values()):
            LinearAttentionLayer.crop(self, tokens_to_remove)

    def reset(self) -> None:
        """Forget all sequences; an old state would accept a smaller batch without an error."""
        self._keys.reset()
        kept = {name: getattr(self, name) for name in ("device", "dtype", "record_past")}
        LinearAttentionLayer.__init__(self)
        self.__dict__ |= kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i become a copy of sequence `beam_idx[i]`."""
        self._keys.reorder_cache(beam_idx)

    def _select(self, index: Tensor) -> None:
        self._keys._select(index)
        for states in (self.conv_states, self.recurrent_states):
            states.update({i: None if state is None else state[index] for i, state in states.items()})


class HybridPlanLayer(_WithState, PlanLayer):
    """A layer whose slabs grow, and a state."""


class FixedHybridPlanLayer(_WithState, FixedPlanLayer):
    """A layer that is allocated once, and a state."""


def layer(rules: Rules, batches: dict[torch.device, BatchState], max_length: int | None, has_state: bool) -> PlanLayer:
    """Return an empty cache layer with rules.

    Args:
        rules: Its rules.
        batches: What it shares with the other layers of a device.
        max_length: As for `KVCache`.
        has_state: Whether it keeps a state beside its keys.
    """
    if max_length is None:
        return (HybridPlanLayer if has_state else PlanLayer)(rules, batches)
    return (FixedHybridPlanLayer if has_state else FixedPlanLayer)(rules, batches, max_length)
