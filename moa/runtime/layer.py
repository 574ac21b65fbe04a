"""A cache layer that keeps what the plan wants: staging, attention and commit of one layer of a `KVCache`.

Transformers hands new keys to the cache (`update`) before the attention function, and only the latter has the mask;
the attention function in turn never sees the cache. So the work of one layer in one forward call goes in three steps:

1. **stage**: `update(k, v)` stores nothing. It returns a `Staged` handle in place of the keys and the values, which the
   model passes on untouched.
2. **attend**: the attention function finds the handle and calls its `attend`, which drops padding by the mask and
   lets the back-end attend over what the slabs hold and the new tokens.
3. **commit**: the new keys go into their slabs (which grow first, where they must) and the lengths advance.

A handle that reaches other code, because the model is not under a plan, refuses every use by name.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from moa.kernels.backend import Backend
from moa.kernels.call import Packed
from moa.kernels.dispatch import attend
from moa.kernels.sinks import Sinks
from moa.kernels.store import Store, allocate, move, select
from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK, Ints
from moa.runtime.rules import Rules
from moa.runtime.staged import Staged
from moa.runtime.text import Call, Text


class PlanLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """A layer whose slabs grow with the text, by geometric steps.

    Attributes:
        text: What it shares with the other layers on its device; set at first use.
        columns: Columns stored, for comparison with other layers: calls in compiled graphs do not count.
        store: Slabs of every (sequence, group); None while empty.
        sinks: What those sinks hold that do not hold the first keys; None where all do.
    """

    is_sliding = False
    is_croppable = True
    text: Text

    def __init__(self, rules: Rules, texts: dict[torch.device, Text]) -> None:
        super().__init__()
        self.rules, self.columns, self._texts = rules, 0, texts
        self._foreseen = False
        self.store: Store | None = None
        self.sinks: Sinks | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn batch size, dtype and device from the first keys [batch, kv_heads, new, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, groups, _, self._head_size = key_states.shape
        self._leads = self.device not in self._texts
        if self._leads:
            self._texts[self.device] = self._new_text(batch)
        self.text = self._texts[self.device]
        self._room = np.zeros(batch, np.int64)  # lengths that the slabs have room for
        self._lost = np.zeros((batch, groups), np.int64)  # blocks before it may be overwritten
        self._new_sinks(batch)
        self.is_initialized = True

    def _new_sinks(self, batch: int) -> None:
        if self.rules.moving:
            self.sinks = Sinks(self.rules.reach.sink, self.rules.moves, batch, self.device)

    def foresee(self, key_states: Tensor, value_states: Tensor) -> None:
        """Initialise by another layer's first keys; undone if this layer's own turn out to be on another device."""
        self.lazy_initialization(key_states, value_states)
        self._foreseen = True

    def _new_text(self, batch: int) -> Text:
        return Text(batch, self.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Stage keys and values [batch, kv_heads, new, D]; see the module's text."""
        if key_states.shape != value_states.shape:
            raise Unsupported(
                f"keys and values must have one head size, found {key_states.shape[-1]} and {value_states.shape[-1]}"
            )
        if self._foreseen and key_states.device != self.device:
            self.store, self.sinks, self.is_initialized = None, None, False
        self._foreseen = False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self.batch_size:
            raise Unsupported(f"the cache holds a batch of {self.batch_size}, the model got {key_states.shape[0]}")
        if key_states.dtype != self.dtype:
            raise Unsupported(f"the cache holds {self.dtype}, the model's keys are now {key_states.dtype}")
        staged = Staged(self, key_states, value_states)
        return staged, staged

    def commit(
        self, query: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *,
        scale: float, backend: Backend, peers: "Sequence[PlanLayer]",
    ) -> Tensor:  # fmt: skip
        """Attend, then store the new keys; arguments and result as for `Staged.attend`."""
        text, new, leads = self.text, k.shape[2], self._leads
        call = text.open(mask, new) if leads else text.join(mask, new)
        packing = call.packing
        q, k, v = packing.pack(query), packing.pack(k), packing.pack(v)
        if leads and self.store is None and self.device.type == "cpu":
            for layer in peers:  # see `KVCache.update`
                if layer.is_initialized and layer.text is text:
                    layer.prepare(call)
        if new == 1 and self.sinks is not None and torch.compiler.is_compiling():
            moving = ", ".join(self.rules.moving)
            raise Unsupported(f"rules of pattern {moving} inside a compiled graph: the host moves keys to the sinks")
        every = call.real is None or new == 1  # a padded token of a single column is packed too
        longest = None if self.sinks is None else self._longest_past()

        def grown() -> Store:
            self._make_room(call.lengths)
            assert self.store is not None
            return self.store

        out = attend(
            q, k, v, batch=Packed(packing.cu_seqlens, call.lengths, new, every, longest),
            seen=self.rules.visibility(call.longest, self.device), store=self.store, sinks=self.sinks, grown=grown,
            scale=scale, backend=backend,
        )  # fmt: skip
        if leads:
            text.close(call, new)
        if not torch.compiler.is_compiling():
            self.columns += new
        return packing.unpack(out)

    def _longest_past(self) -> Ints:
        """Lengths before the call under way, or an upper bound of them: int64 [sequences]."""
        return self.text.held

    def prepare(self, call: Call) -> None:
        """Allocate what the call will need."""
        self.rules.visibility(call.longest, self.device)
        self._make_room(call.lengths)

    def _make_room(self, lengths: Tensor) -> None:
        """Slabs for what the call under way writes to texts of `lengths`."""
        written = self.text.written
        if self.store is not None and (written <= self._room).all():
            return
        self._note_lost(self.text.held)
        self._room = self.rules.reserve(written)
        store = self._allocate()
        if self.store is not None:
            move(self.store, store, sink=self.rules.visibility(1, self.device).sink, lengths=lengths)
        self.store = store

    def _allocate(self) -> Store:
        slots = self.rules.capacities(self._room)
        self._ring = (slots - self.rules.reach.sink) // BLOCK
        return allocate(slots, self._head_size, self.dtype, self.device)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask that the attention function will get."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> Any:
        """Columns seen so far, padding counted."""
        return self.text.width if self.is_initialized else 0

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    def reset(self) -> None:
        """Forget the text and free the memory."""
        if self.is_initialized:
            self._texts.pop(self.device, None)
        self.store, self.sinks, self.columns, self.is_initialized = None, None, 0, False

    def check_crop(self, columns: int, lengths: Ints, left: Ints) -> None:
        """Raise Unsupported unless texts of `lengths` can be cut to `left`: no key wanted afterwards may be gone.

        Args:
            columns: That are taken back.
            lengths: [sequences], now.
            left: [sequences], afterwards.
        """
        self._note_lost(lengths)
        first = self.rules.first(left)
        lost = ((first < self._lost) & (BLOCK * first < left[:, None])).any()
        if lost or (self.sinks is not None and not self.sinks.check_crop(first)):
            raise Unsupported(
                f"cannot crop {columns} tokens: keys that the plan wants again at that length are gone; "
                f"up to {BLOCK} tokens at a time can always be cropped"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` columns (transformers passes a negative number).

        `KVCache.crop` checks before whether it may, and takes them from what layers share after.
        """
        if self.is_initialized:
            self.columns += tokens_to_remove

    def _note_lost(self, lengths: Ints) -> None:
        """A ring holds the newest blocks that were written; those before may be overwritten for good.

        The newest may be the next position's, by a padded token of a single column (`Packing`), if there was room.
        """
        if self.store is not None:
            written = np.minimum(lengths + 1, self._room)[:, None]
            self._lost = np.maximum(self._lost, -(-written // BLOCK) - self._ring)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i become a copy of sequence `beam_idx[i]`."""
        if self.is_initialized:
            self._select(beam_idx.to(self.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        if self.is_initialized:
            self._select(torch.arange(self.batch_size, device=self.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the sequences `indices`."""
        if self.is_initialized:
            self._select(torch.arange(self.batch_size, device=self.device)[indices])

    def _select(self, index: Tensor) -> None:
        on_host = index.cpu().numpy()
        if self.store is not None:
            self.store = select(self.store, index)
            self._ring = self._ring[on_host]
        if self.sinks is not None:
            self.sinks = self.sinks.select(index)
        self._room, self._lost = self._room[on_host], self._lost[on_host]

    @property
    def batch_size(self) -> int:
        """Sequences; no attribute before first use, as transformers expects."""
        return self.text.batch

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return 0 if self.store is None else self.store.nbytes

    @property
    def live_bytes(self) -> int:
        """Bytes of the blocks that the plan wants at the current lengths."""
        if not self.is_initialized:
            return 0
        return 2 * self._head_size * self.dtype.itemsize * self.rules.live_slots(self.text.host_lengths())
