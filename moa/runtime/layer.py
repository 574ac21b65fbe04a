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

import inspect
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from moa.kernels.backend import Backend
from moa.kernels.sinks import Sinks
from moa.kernels.store import Store, allocate, move, select
from moa.kernels.walk import walk
from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK, Ints
from moa.runtime.rules import Rules
from moa.runtime.text import Call, Text

ATTRIBUTE = "_moa"
"""The attribute of an attention module under a plan that holds its `moa.runtime.attention.LayerState`."""


class Staged:
    """New keys and values of one layer, on their way from the cache to the attention function.

    Attributes:
        peers: All layers with rules of the cache. Layers do not know each other, so that a cache no longer used is
            freed at once and not when Python next looks for cycles.
    """

    peers: "Sequence[PlanLayer]" = ()

    def __init__(self, layer: "PlanLayer", k: Tensor, v: Tensor) -> None:
        self._layer, self.k, self.v = layer, k, v

    @property
    def columns(self) -> int:
        """Columns that the layer will hold, past and new."""
        return self._layer.columns + int(self.k.shape[2])

    def attend(self, query: Tensor, mask: Tensor | None, *, scale: float, backend: Backend) -> Tensor:
        """Attention of `query` [batch, query_heads, width, D] to the past and the staged keys, which are then stored.

        Args:
            query: Of the staged tokens.
            mask: bool [batch, past + new columns], false where padded; None when no new token is.
            scale: Factor on q·k.
            backend: Of `moa.kernels.backend`.

        Returns:
            [batch, width, query_heads, D], 0 where padded.
        """
        layer = self._layer
        return layer.commit(query, self.k, self.v, mask, scale=scale, backend=backend, peers=self.peers or (layer,))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    """Say who reads a handle: a module under a plan that works on cached keys by itself, or one without a plan."""
    frame = inspect.currentframe()
    while frame is not None:
        for reader in (frame.f_locals.get("self"), frame.f_locals.get("module")):
            if isinstance(reader, torch.nn.Module) and ATTRIBUTE in reader.__dict__:
                raise Unsupported(
                    f"{type(reader).__name__} does more with cached keys and values than attend by transformers' "
                    "interface, which plans do not honour: use the model without a plan"
                )
        frame = frame.f_back
    raise Unsupported("a moa.KVCache works only with a model under its plan: call moa.apply(model, plan) first")


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
        rules = self.rules.tables(call.longest, self.device)
        where = {"starts": packing.starts, "lengths": call.lengths}
        every_row = call.real is None or new == 1  # `step` wants a token of every sequence
        if self.sinks is not None and new > 1:
            self._make_room(call.lengths)
            assert self.store is not None
            out = walk(
                q, k, v, **rules, store=self.store, sinks=self.sinks, edges=self.rules.first, **where, scale=scale,
                backend=backend,
            )  # fmt: skip
        elif self.store is not None and new <= BLOCK and every_row:
            self._make_room(call.lengths)
            if self.sinks is not None:
                self._advance(call)
            out = backend.step(q, k, v, **rules, store=self.store, **where, scale=scale)
        else:
            out = backend.attend(q, k, v, **rules, store=self.store, **where, scale=scale)
            self._make_room(call.lengths)
            backend.append(self.store, k, v, sink=rules["sink"], **where)
        if leads:
            text.close(call, new)
        if not torch.compiler.is_compiling():
            self.columns += new
        return packing.unpack(out)

    def _advance(self, call: Call) -> None:
        """Let sinks hold what the one new token of each sequence wants. The host may know of lengths only a bound."""
        assert self.sinks is not None
        assert self.store is not None
        if torch.compiler.is_compiling():
            moving = ", ".join(self.rules.moving)
            raise Unsupported(f"rules of pattern {moving} inside a compiled graph: the host moves keys to the sinks")
        if self.sinks.due(self.rules.first(self._bound())).any():
            self.sinks.advance(self.store, self.rules.first(call.lengths.cpu().numpy()))

    def _bound(self) -> Ints:
        """Lengths before the call under way, or an upper bound of them: int64 [sequences]."""
        return self.text.held

    def prepare(self, call: Call) -> None:
        """Allocate what the call will need."""
        self.rules.tables(call.longest, self.device)
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
            move(self.store, store, sink=self.rules.tables(1, self.device)["sink"], lengths=lengths)
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
