"""Provide the cache layer that keeps what the plan keeps: it stages, attends and commits for one layer of a `KVCache`.

Transformers passes new keys to the cache (`update`) before it calls the attention function. Only the attention function
has the mask, and it never sees the cache. So each layer does its work of a forward call in three steps:

1. **stage**: `update(k, v)` stores nothing. It returns a `Staged` handle in place of the keys and the values, which the
   model passes on unchanged.
2. **attend**: the attention function finds the handle and calls its `attend`, which drops padding by the mask and
   lets the back-end attend to the keys in the slabs and to those of the new tokens.
3. **commit**: the new keys are written into their slabs, which grow first if they must, and the lengths advance. Where
   later layers share the keys, the last of them to attend commits.

If a handle reaches other code, because the model is not under a plan, it raises an error that says so.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from moa.hf.padding import Packing
from moa.kernels.backend import Backend
from moa.kernels.call import Packed
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, allocate, capacities, move, select
from moa.plans.errors import Unsupported
from moa.plans.reading import SUMMARIES, summary_bytes
from moa.plans.span import BLOCK, Ints
from moa.runtime.batch import BatchState, ForwardCall
from moa.runtime.rules import Rules
from moa.runtime.staged import Staged


class PlanLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """A layer whose slabs grow with the sequences, in geometric steps.

    Attributes:
        batch: The lengths and padding that it shares with the other layers on its device; set at first use.
        columns: Number of columns stored, to compare with other layers; calls in compiled graphs do not count.
        store: Slabs of every (sequence, group); None while empty.
        sinks: The keys in sinks into which keys move; None where every sink holds the first keys.
    """

    is_sliding = False
    is_croppable = True
    batch: BatchState

    def __init__(self, rules: Rules, batches: dict[torch.device, BatchState]) -> None:
        super().__init__()
        self.rules, self.columns, self._batches = rules, 0, batches
        self._initialized_early = False
        self._joined: ForwardCall | None = None  # the latest call whose keys it holds
        self.store: Store | None = None
        self.sinks: Sinks | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn batch size, dtype and device from the first keys [batch, kv_heads, new, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        sequences, groups, _, self._head_size = key_states.shape
        self._is_first = self.device not in self._batches
        if self._is_first:
            self._batches[self.device] = self._new_batch(sequences)
        self.batch = self._batches[self.device]
        self._room = np.zeros(sequences, np.int64)  # lengths that the slabs have room for
        self._lost = np.zeros((sequences, groups), np.int64)  # earlier blocks may have been overwritten
        self._new_sinks(sequences)
        self.is_initialized = True

    def _new_sinks(self, sequences: int) -> None:
        if self.rules.moves_keys:
            self.sinks = Sinks(self.rules.reach.sink, self.rules.holds, self.rules.first, sequences, self.device)

    def initialize_early(self, key_states: Tensor, value_states: Tensor) -> None:
        """Initialize from another layer's first keys; `update` starts again if its own are on another device."""
        self.lazy_initialization(key_states, value_states)
        self._initialized_early = True

    def _new_batch(self, sequences: int) -> BatchState:
        return BatchState(sequences, self.device)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Return a handle for the new keys and values [batch, kv_heads, new, D], twice; see the module's docstring.

        Raises:
            Unsupported: Their shape, dtype or batch size is not what the cache holds.
        """
        if key_states.shape != value_states.shape:
            raise Unsupported(
                f"keys and values must have one head size, found {key_states.shape[-1]} and {value_states.shape[-1]}"
            )
        if self._initialized_early and key_states.device != self.device:
            self.store, self.sinks, self.is_initialized = None, None, False
        self._initialized_early = False
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self.batch_size:
            raise Unsupported(f"the cache holds a batch of {self.batch_size}, the model got {key_states.shape[0]}")
        if key_states.dtype != self.dtype:
            raise Unsupported(f"the cache holds {self.dtype}, the model's keys are now {key_states.dtype}")
        past = 0 if torch.compiler.is_compiling() else self.columns  # a graph would hold for this number alone
        staged = Staged(key_states, value_states, past, self.read, self.rules.readers)
        return staged, staged

    def read(
        self, query: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *,
        softmax: Softmax, backend: Backend, peers: "Sequence[PlanLayer]", first: bool, last: bool,
    ) -> Tensor:  # fmt: skip
        """Attend, and store the new keys if it is for the last time; other arguments are those of `Staged.attend`."""
        new = k.shape[2]
        call = self.batch.begin(mask, new) if self._is_first and first else self.batch.join(mask, new)
        if query.shape[2] < new:
            return self._read_last(query, k, v, call, softmax=softmax, backend=backend)
        packing = call.packing
        q, k, v = packing.pack(query), packing.pack(k), packing.pack(v)
        if self._is_first and self.store is None and self.device.type == "cpu":
            for layer in peers or (self,):  # see `KVCache.update`
                if layer.is_initialized and layer.batch is self.batch:
                    layer.allocate_for(call)
        self.rules.serve([backend.name])
        nonempty = call.real is None or new == 1  # a padded token in a single column is packed too
        waits = new > 1 and (self.sinks is not None or self.rules.reads)
        lengths = call.on_host if waits else None  # read once for all layers

        def grown() -> Store:
            self._make_room(call.lengths)
            assert self.store is not None
            return self.store

        out = attend(
            q, k, v, batch=Packed(packing.cu_seqlens, call.lengths, new, nonempty, lengths),
            seen=self.rules.visibility(call.longest, self.device), store=self.store, sinks=self.sinks, grown=grown,
            softmax=softmax, backend=backend, reading=self.rules.reading(self.device), again=not last,
        )  # fmt: skip
        if last:
            self._commit(call)
        return packing.unpack(out)

    def _read_last(
        self, query: Tensor, k: Tensor, v: Tensor, call: ForwardCall, *, softmax: Softmax, backend: Backend
    ) -> Tensor:
        """Attend from the last column alone, once all keys are stored: as the step that would store the last again."""
        seen = self.rules.visibility(call.longest, self.device)
        if self._joined is not call:
            self._make_room(call.lengths)
            assert self.store is not None
            k_all, v_all = call.packing.pack(k), call.packing.pack(v)
            batch = Packed(call.packing.cu_seqlens, call.lengths, call.new)
            backend.append(self.store, k_all, v_all, batch=batch, seen=seen)
            self._commit(call)
        one = Packing(None, self.batch_size, 1, self.device)
        batch = Packed(one.cu_seqlens, call.lengths + (call.new - 1), 1, nonempty=True)
        q, k, v = one.pack(query), one.pack(k[:, :, -1:]), one.pack(v[:, :, -1:])
        assert self.store is not None
        return one.unpack(backend.decode(q, k, v, batch=batch, seen=seen, store=self.store, softmax=softmax))

    def _commit(self, call: ForwardCall) -> None:
        """Count the tokens of a call, whose keys are stored."""
        if self._is_first:
            self.batch.end(call, call.new)
        self._joined = call
        if not torch.compiler.is_compiling():
            self.columns += call.new

    def allocate_for(self, call: ForwardCall) -> None:
        """Allocate the slabs that the call will need."""
        self.rules.visibility(call.longest, self.device)
        self._make_room(call.lengths)

    def _make_room(self, lengths: Tensor) -> None:
        """Grow the slabs where they have no room for what the call under way adds to sequences of `lengths`."""
        if self.store is not None and (self.batch.written_lengths <= self._room).all():
            return
        self._note_lost(self.batch.past_lengths)
        self._room = self.rules.reserve(self.batch.written_lengths)
        store = self._allocate()
        if self.store is not None:
            move(self.store, store, sink=self.rules.visibility(1, self.device).sink, lengths=lengths)
        self.store = store

    def _allocate(self) -> Store:
        slots = capacities(self.rules.reach, self._room)
        self._ring = (slots - self.rules.reach.sink) // BLOCK
        kind = self._head_size, self.dtype, self.device
        return allocate(slots, *kind, summaries=self.rules.reads, alone=self.rules.latent)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns, and the offset, of the mask that the attention function will get."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> Any:
        """Return the number of columns that this layer holds, padding counted; within a call, layers may differ."""
        return self._held_columns() if self.is_initialized else 0

    def _held_columns(self) -> Any:
        counted = self.batch.counted
        return self.batch.width if counted is None or counted is self._joined else self.batch.width - counted.new

    def get_max_length(self) -> int:
        """Return -1, which says that there is no limit."""
        return -1

    def reset(self) -> None:
        """Forget all sequences and free the memory."""
        if self.is_initialized:
            self._batches.pop(self.device, None)
        self.store, self.sinks, self.columns, self.is_initialized = None, None, 0, False

    def check_crop(self, columns: int, lengths: Ints, left: Ints) -> None:
        """Refuse to crop sequences after which the plan would need keys that are gone.

        Args:
            columns: Number of columns to remove.
            lengths: Lengths now [sequences].
            left: Lengths afterwards [sequences].

        Raises:
            Unsupported: Such a key is gone.
        """
        self._note_lost(lengths)
        first = self.rules.first(left)
        lost = ((first < self._lost) & (BLOCK * first < left[:, None])).any()
        if lost or (self.sinks is not None and not self.sinks.can_take_back(first)):
            raise Unsupported(
                f"cannot crop {columns} tokens: keys that the plan would need again at that length are gone; "
                f"up to {BLOCK} tokens at a time can always be cropped"
            )

    def take_back(self, left: Ints) -> None:
        """Bring the keys back that sequences of lengths `left` [sequences] see again, where keys move into sinks."""
        if self.sinks is not None and self.store is not None:
            self.sinks.take_back(self.store, self.rules.first(left))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` columns (transformers passes a negative number).

        `KVCache.crop` has checked that this is possible, and then crops the state that layers share.
        """
        if self.is_initialized:
            self.columns += tokens_to_remove

    def _note_lost(self, lengths: Ints) -> None:
        """Record which blocks may have been overwritten: all before the newest that fit into the ring.

        The newest block may be the next position's, which a padded token of a single column has written (`Packing`), if
        there was room.
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
        """The number of sequences; the attribute is missing before first use, as transformers expects."""
        return self.batch.size

    @property
    def nbytes(self) -> int:
        """The bytes allocated for keys, values and their summaries."""
        return 0 if self.store is None else self.store.nbytes

    @property
    def live_bytes(self) -> int:
        """The bytes of the blocks that the plan needs at the current lengths."""
        if not self.is_initialized:
            return 0
        slots = self.rules.live_slots(self.batch.host_lengths())
        summary = SUMMARIES * summary_bytes(self._head_size) if self.rules.reads else 0
        return self.rules.model.token_bytes(self.dtype.itemsize) * slots + summary * (slots // BLOCK)
