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

from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from moa.kernels.backend import Backend
from moa.kernels.store import Store, allocate, capacities, move, select
from moa.padding import Packing
from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK, Ints
from moa.rules import Rules


class Staged:
    """New keys and values of one layer, on their way from the cache to the attention function."""

    def __init__(self, layer: "PlanLayer", k: Tensor, v: Tensor) -> None:
        self._layer, self._k, self._v = layer, k, v

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
        return self._layer.commit(query, self._k, self._v, mask, scale=scale, backend=backend)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        _refuse()


def _refuse() -> NoReturn:
    raise Unsupported("a moa.KVCache works only with a model under its plan: call moa.apply(model, plan) first")


class PlanLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """A layer whose slabs grow with the text, by geometric steps.

    Attributes:
        width: Columns seen so far, padding counted, as transformers counts.
        lengths: int64 [sequences] on the device, true lengths.
        store: Slabs of every (sequence, group); None while empty.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules
        self.store: Store | None = None
        self.width: Any = 0
        self._real: Tensor | None = None  # bool [sequences, columns], false where padded; None: nothing ever was

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Learn batch size, dtype and device from the first keys [batch, kv_heads, new, D]."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.batch_size, self._groups, _, self._head_size = key_states.shape
        self.lengths = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
        self._held = np.zeros(self.batch_size, np.int64)  # the host's copy of lengths, or an upper bound of it
        self._room = np.zeros(self.batch_size, np.int64)  # lengths that the slabs have room for
        self._lost = np.zeros((self.batch_size, self._groups), np.int64)  # blocks before it may be overwritten
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Stage keys and values [batch, kv_heads, new, D]; see the module's text."""
        if key_states.shape != value_states.shape:
            raise Unsupported(
                f"keys and values must have one head size, found {key_states.shape[-1]} and {value_states.shape[-1]}"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self.batch_size:
            raise Unsupported(f"the cache holds a batch of {self.batch_size}, the model got {key_states.shape[0]}")
        staged = Staged(self, key_states, value_states)
        return staged, staged

    def commit(
        self, query: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, scale: float, backend: Backend
    ) -> Tensor:
        """Attend, then store the new keys; arguments and result as for `Staged.attend`."""
        batch, _, new, _ = k.shape
        real = self._new_columns(mask, new)
        packing = Packing(real, batch, new, k.device)
        q, k, v = packing.pack(query), packing.pack(k), packing.pack(v)
        tokens = new if real is None else real.sum(1)
        longest = self._admit(tokens, new)
        rules = self.rules.tables(longest, k.device)
        where = {"starts": packing.starts, "lengths": self.lengths}
        every_row = real is None or new == 1  # `step` wants a token of every sequence
        if self.store is not None and new <= BLOCK and every_row:
            self._make_room()
            out = backend.step(q, k, v, **rules, store=self.store, **where, scale=scale)
        else:
            out = backend.attend(q, k, v, **rules, store=self.store, **where, scale=scale)
            self._make_room()
            backend.append(self.store, k, v, sink=rules["sink"], **where)
        self._advance(tokens, real, new)
        return packing.unpack(out)

    def _new_columns(self, mask: Tensor | None, new: int) -> Tensor | None:
        """The mask's last `new` columns, after checking that the rest tells what was stored."""
        if mask is None:
            return None
        if mask.shape != (self.batch_size, self.width + new):
            raise Unsupported(
                f"the attention mask must have {self.batch_size} rows and {self.width} cached + {new} new columns, "
                f"found {tuple(mask.shape)}"
            )
        if self.width and self.may_wait(new):
            past = mask[:, : self.width]
            if not (past.all() if self._real is None else torch.equal(past, self._real)):
                raise Unsupported("the attention mask hides or shows other past tokens than when they were stored")
        return mask[:, self.width :]

    def _admit(self, tokens: Tensor | int, new: int) -> int:
        """Note on the host how long the texts become; the longest."""
        exact = isinstance(tokens, int) or self.may_wait(new)
        if not exact:
            tokens = new
        self._after = self._held + (tokens.cpu().numpy() if isinstance(tokens, Tensor) else tokens)
        self._written = self._held + 1 if new == 1 else self._after  # a padded token of a single column is written too
        return int(self._written.max())

    def _make_room(self) -> None:
        if self.store is not None and (self._written <= self._room).all():
            return
        self._note_lost(self._held)
        self._room = self.rules.reserve(self._written)
        store = self._allocate()
        if self.store is not None:
            move(self.store, store, sink=self.rules.tables(1, self.device)["sink"], lengths=self.lengths)
        self.store = store

    def _allocate(self) -> Store:
        slots = capacities(self.rules.sink, self.rules.alpha, self.rules.beta256, self._room)
        with torch.inference_mode(False):  # so that later calls, outside of inference mode, may write too
            return allocate(slots, self._head_size, self.dtype, self.device)

    def _advance(self, tokens: Tensor | int, real: Tensor | None, new: int) -> None:
        if self._real is not None or real is not None:
            past, now = (
                torch.ones(self.batch_size, columns, dtype=torch.bool, device=self.device) if x is None else x
                for x, columns in ((self._real, self.width), (real, new))
            )
            self._real = torch.cat([past, now], 1)
        self.lengths = self.lengths + tokens
        self._held = self._after
        self.width += new

    def may_wait(self, new: int) -> bool:
        """Whether reading device values is free: on the CPU always, elsewhere not in a decode step."""
        return self.device.type == "cpu" or new > 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns and offset of the mask that the attention function will get."""
        return self.width + query_length, 0

    def get_seq_length(self) -> Any:
        """Columns seen so far, padding counted."""
        return self.width

    def get_max_length(self) -> int:
        """-1: no limit."""
        return -1

    def reset(self) -> None:
        """Forget the text and free the memory."""
        self.store, self.width, self._real, self.is_initialized = None, 0, None, False

    def check_crop(self, columns: int) -> None:
        """Raise Unsupported unless the last `columns` can be taken back: no key wanted afterwards may be gone."""
        if not self.is_initialized:
            return
        if columns > int(self.width):
            raise Unsupported(f"cannot crop {columns} tokens, the cache holds {int(self.width)}")
        lengths = self._lengths()
        self._note_lost(lengths)
        left = lengths - self._tokens_in_last(columns)
        first = self.rules.first(left)
        if ((first < self._lost) & (BLOCK * first < left[:, None])).any():
            raise Unsupported(
                f"cannot crop {columns} tokens: keys that the plan wants again at that length are gone; "
                f"up to {BLOCK} tokens at a time can always be cropped"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` columns (transformers passes a negative number).

        Raises:
            Unsupported: Keys that would be wanted again are gone.
        """
        if tokens_to_remove > 0:
            raise Unsupported(f"crop takes minus the number of tokens to remove, found {tokens_to_remove}")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        self.check_crop(-tokens_to_remove)
        self._take_back(-tokens_to_remove)

    def _take_back(self, columns: int) -> None:
        self._held = self._lengths() - self._tokens_in_last(columns)
        self.lengths = torch.from_numpy(self._held).to(self.device)
        self.width -= columns
        if self._real is not None:
            self._real = self._real[:, : self.width]

    def _tokens_in_last(self, columns: int) -> Ints:
        if self._real is None:
            return np.full(self.batch_size, columns, np.int64)
        width = int(self.width)
        return self._real[:, width - columns : width].sum(1).cpu().numpy()

    def _lengths(self) -> Ints:
        return self.lengths.cpu().numpy().copy()

    def _note_lost(self, lengths: Ints) -> None:
        """A ring holds the newest blocks that were written; those before may be overwritten for good.

        The newest may be the next position's, by a padded token of a single column (`Packing`), if there was room.
        """
        if self.store is not None:
            ring = self.store.capacity.cpu().numpy() // BLOCK - self.rules.sink // BLOCK
            written = np.minimum(lengths + 1, self._room)[:, None]
            self._lost = np.maximum(self._lost, -(-written // BLOCK) - ring)

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
        self.lengths = self.lengths[index]
        self._real = None if self._real is None else self._real[index]
        self._held, self._room, self._lost = self._held[on_host], self._room[on_host], self._lost[on_host]
        self.batch_size = len(on_host)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return 0 if self.store is None else self.store.nbytes

    @property
    def live_bytes(self) -> int:
        """Bytes of the blocks that the plan wants at the current lengths."""
        if not self.is_initialized:
            return 0
        return 2 * self._head_size * self.dtype.itemsize * self.rules.live_slots(self._lengths())
