"""Provide the KV cache of a model under a plan, as one of transformers' caches."""

import copy
from collections.abc import Collection
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from moa.hf import latent
from moa.plans.errors import MoaError, Unsupported
from moa.plans.plan import Plan
from moa.plans.span import Ints
from moa.runtime import hybrid, stock
from moa.runtime.batch import BatchState
from moa.runtime.layer import PlanLayer
from moa.runtime.rules import Rules
from moa.runtime.transcript import Transcript


class KVCache(Cache):  # type: ignore[misc]  # transformers has no types
    """The keys and values that the plan still needs, for every sequence and KV head; padding is never stored.

    The cache works only with a model under the same plan (`moa.apply`), whose `generate` makes one by itself. Layers
    that take no rules use transformers' cache layers.

    Attributes:
        plan: The plan.
        max_length: Number of tokens that fixed slabs have room for, padding counted; None when slabs grow.
        beyond_limit: Whether its keys are rotated as those of long texts, for models that rotate keys of short and long
            texts differently (`moa.runtime.continuation`); None before the first call.
        transcript: The token ids of its columns.
        in_call: Whether a forward call has reached the layers and not ended, for models with layers that keep no keys.
    """

    def __init__(self, plan: Plan | str | PathLike[str], max_length: int | None = None) -> None:
        """Make an empty cache.

        Args:
            plan: A plan, the path of a plan file, or the name of a shipped plan.
            max_length: Without it slabs grow with the text, and `nbytes` is at most 1/8 over `plan.kv_bytes`. With it
                all slabs are allocated at first use, `nbytes` is `plan.kv_bytes(max_length)` and one column more in
                each layer with a window, a decode step never waits for the device, and `torch.compile` works.

        Raises:
            MoaError: `max_length` is below 1.
        """
        plan = plan if isinstance(plan, Plan) else Plan.load(plan)
        if max_length is not None and max_length < 1:
            raise MoaError(f"max_length must be 1 or more, found {max_length}")
        batches: dict[torch.device, BatchState] = {}
        layers = stock.layers(plan.model, max_length)
        for layer in plan.model.ruled_layers:
            has_state = layer in (plan.model.hybrid or ())
            layers[layer] = hybrid.layer(Rules(plan, layer), batches, max_length, has_state)
        super().__init__(layers=layers)
        self.plan, self.max_length, self._batches = plan, max_length, batches
        self.beyond_limit: bool | None = None
        self.transcript, self.in_call = Transcript(), False
        self._ruled = [layer for layer in self.layers if isinstance(layer, PlanLayer)]
        self._first_ruled = plan.model.ruled_layers[0]

    @property
    def nbytes(self) -> int:
        """The bytes allocated for keys, values and their summaries."""
        return sum(layer.nbytes for layer in self._ruled) + sum(stock.kv_bytes(layer) for _, layer in self._unruled)

    @property
    def live_bytes(self) -> int:
        """The bytes of the blocks that the plan needs at the current lengths, and all bytes of layers without rules."""
        return sum(layer.live_bytes for layer in self._ruled) + sum(stock.kv_bytes(layer) for _, layer in self._unruled)

    @property
    def state_bytes(self) -> int:
        """The bytes of states, in place of keys or beside them: constant, and no part of `nbytes`."""
        return sum(map(stock.state_bytes, self.layers))

    @property
    def _unruled(self) -> list[tuple[int, Any]]:
        """The layers that take no rules, with their indices."""
        return [(i, layer) for i, layer in enumerate(self.layers) if not isinstance(layer, PlanLayer)]

    @property
    def columns(self) -> int:
        """The number of columns seen, padding counted, known without a wait; calls in compiled graphs do not count."""
        return int(self.layers[self._first_ruled].columns)

    @property
    def lengths(self) -> Tensor | None:
        """The true length of each sequence, int64 [sequences]; None while the cache is empty."""
        layer = self.layers[self._first_ruled]
        return layer.batch.lengths if layer.is_initialized else None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Return handles for a layer's new keys and values [batch, kv_heads, new, D]; see `moa.runtime.layer`.

        In layers that cache latents, they are the latents and the rotated parts of keys.

        Raises:
            Unsupported: The layers hold different numbers of tokens, because an earlier forward call was cut short.
        """
        layer = self.layers[layer_idx]
        if self.plan.model.latent and isinstance(layer, PlanLayer):
            key_states = value_states = latent.joined(key_states, value_states)
        key_states = key_states.to(value_states.dtype)  # autocast leaves keys in float32, by their rotary embedding
        if key_states.device.type == "cpu" and isinstance(layer, PlanLayer) and not layer.is_initialized:
            # All layers are initialized at once, so that the first call allocates all slabs before its large temporary
            # tensors: slabs between those would make glibc's heap grow by more than the plan saves.
            layer.lazy_initialization(key_states, value_states)
            for other in self._ruled:
                if not other.is_initialized:
                    other.initialize_early(key_states, value_states)
        staged = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if isinstance(layer, PlanLayer):
            staged[0].peers = self._ruled
        first, new = self.layers[self._first_ruled], key_states.shape[-2]
        checked = isinstance(layer, PlanLayer) and layer is not first and not torch.compiler.is_compiling()
        if checked and layer.columns + new != first.columns:  # the first has committed this call's tokens
            cached = int(first.batch.width) - new
            raise Unsupported(
                f"the cache's layer {layer_idx} holds {cached - first.columns + new + layer.columns} tokens, layer "
                f"{self._first_ruled} held {cached}: an earlier call was cut short; reset the cache"
            )
        return staged  # type: ignore[no-any-return]

    def serve(self, backends: Collection[str]) -> None:
        """Learn before the first call by which back-ends it will be read, on which `is_compileable` may depend."""
        for layer in self._ruled:
            layer.rules.serve(backends)

    def check_in_step(self) -> None:
        """Refuse to go on if an earlier call stored tokens in some layers and then failed.

        `update` notices this in layers with rules. This check is for layers with a window, which store their tokens
        before it is known whether all can: they count them, which is checked where no GPU must wait. What a state holds
        cannot be told (`stock.check_whole`).

        Raises:
            Unsupported: The layers hold different numbers of tokens, or may do so.
        """
        if torch.compiler.is_compiling():
            return
        expected = self.layers[self._first_ruled].get_seq_length()
        for i, layer in self._unruled:
            if not stock.has_window(layer):
                continue
            found = layer.get_seq_length()
            if any(isinstance(x, Tensor) and x.device.type != "cpu" for x in (expected, found)):
                return
            if int(found) != int(expected):
                raise Unsupported(
                    f"the cache's layer {i} holds {int(found)} tokens, layer {self._first_ruled} {int(expected)}: an "
                    "earlier call was cut short; reset the cache"
                )

    def __deepcopy__(self, memo: dict[int, Any]) -> "KVCache":
        """Return a copy that can be written outside of inference mode, even if it is made inside."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        with torch.inference_mode(False):
            new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def copy_for(self, plan: Plan) -> "KVCache":
        """Return a copy for a plan that keeps what this cache's plan keeps, and reads another part of it.

        Raises:
            Unsupported: The plan keeps something else, or reads less than it keeps in a layer without summaries.
        """
        if plan.whole.groups != self.plan.whole.groups or plan.model != self.plan.model:
            raise Unsupported("a copy of a cache must be for a plan that keeps the same; this one keeps something else")
        if lacking := [n for n in plan.model.ruled_layers if plan.reads(n) and not self.plan.reads(n)]:
            raise Unsupported(f"layer {lacking[0]} of the cache has no summaries, which the copy's plan reads")
        new = copy.deepcopy(self)
        new.plan = plan
        for index in plan.model.ruled_layers:
            layer = new.layers[index]
            layer.rules = Rules(plan, index)
            if layer.store is not None:
                kept = layer.store.summaries if layer.rules.reads else None
                layer.store = replace(layer.store, summaries=kept, scratch={})
        return new

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens, padding counted, from all layers or from none.

        Raises:
            Unsupported: Keys that the plan would need again are gone. Up to 64 tokens can always be removed.
        """
        self.require("crop")
        tokens_to_remove = int(tokens_to_remove)  # transformers 5.17 counts drafts in a tensor
        if tokens_to_remove > 0:
            raise Unsupported(f"crop takes minus the number of tokens to remove, found {tokens_to_remove}")
        columns, cached, left = -tokens_to_remove, 0, dict[torch.device, Ints]()
        if columns and not self._batches:
            raise Unsupported(f"cannot crop {columns} tokens, the cache holds 0")
        for device, batch in self._batches.items():  # equally wide
            cached = int(batch.width)
            if columns > cached:
                raise Unsupported(f"cannot crop {columns} tokens, the cache holds {cached}")
            lengths = batch.host_lengths()
            left[device] = lengths - batch.tokens_in_last(columns)
            for layer in self._ruled:
                if layer.is_initialized and layer.batch is batch:
                    layer.check_crop(columns, lengths, left[device])
        for i, layer in enumerate(self.layers):
            stock.check_crop(i, layer, columns, cached)
        for layer in self._ruled:
            layer.crop(tokens_to_remove)
            if layer.is_initialized:
                layer.take_back(left[layer.device])
        for _, layer in self._unruled:
            stock.crop(layer, columns)
        self.transcript.crop(columns)
        for batch in self._batches.values():
            batch.crop(columns)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i become a copy of sequence `beam_idx[i]`."""
        super().reorder_cache(beam_idx)
        self.transcript.select(lambda sequences: sequences[beam_idx.to(sequences.device)])
        for batch in self._batches.values():
            batch.select(beam_idx.to(batch.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence `repeats` times."""
        self.require("batch_repeat_interleave")
        super().batch_repeat_interleave(repeats)
        self.transcript.select(lambda sequences: sequences.repeat_interleave(repeats, 0))
        for batch in self._batches.values():
            batch.select(torch.arange(batch.size, device=batch.device).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the sequences `indices`."""
        self.require("batch_select_indices")
        super().batch_select_indices(indices)
        self.transcript.select(lambda sequences: sequences[indices.to(sequences.device)])
        for batch in self._batches.values():
            batch.select(torch.arange(batch.size, device=batch.device)[indices])

    def reset(self) -> None:
        """Empty the cache."""
        super().reset()
        if self.max_length is None:  # an old state would accept a smaller batch without an error
            fresh = stock.layers(self.plan.model, None)
            for i, layer in self._unruled:
                self.layers[i] = stock.renewed(layer, fresh[i])
        self.transcript.reset()
        self.in_call = False

    def require(self, operation: str, what: str = "") -> None:
        """Refuse an operation that some layer does not have.

        Args:
            operation: The name of a method of cache layers.
            what: What asks for it, if not the caller.
        """
        lacking = next((layer for layer in self.layers if not hasattr(layer, operation)), None)
        if lacking is not None:
            raise Unsupported(f"{what or operation}: transformers' {type(lacking).__name__} has no {operation}")
