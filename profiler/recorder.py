"""Run a model forward and backward while its attention layers record the harm of every cut.

The model's own code runs unchanged: one attention function and mask function are registered with transformers, weights
take no gradient, and decoder layers are checkpointed, so that the extra memory is linear in the length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer

from moa.hf import latent, own
from moa.hf.attention import attention_modules, check_heads, decoder_of, switch
from moa.hf.limits import check_window, ruled_window
from moa.hf.logits import check_head
from moa.hf.masks import is_own
from moa.hf.softmax import softmax_of
from moa.kernels.backend import influence, load, pick
from moa.kernels.call import Visibility
from moa.kernels.dispatch import attend_alone
from moa.kernels.influence import Estimator, in_bins, influence_backward
from moa.kernels.registry import ANYWHERE
from moa.kernels.sink_contents import History, history, sinks
from moa.kernels.softmax import Softmax
from moa.kernels.torch import tiled
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo
from moa.plans.patterns import PATTERNS, Variant
from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa.profiler.estimators import effect, fisher
from moa.profiler.profile import bin_size

NAME = "moa_influence"
_RECORDER = "_moa_recorder"
_CHECKPOINTING = ("gradient_checkpointing", "_gradient_checkpointing_func")


class Recorder:
    """The tables of the sample in progress, by layer.

    Attributes:
        model: The model's shape.
        estimator: Function from a tile to the harm of every cut; may be changed between samples.
        plan: The plan that the model runs under; None is dense.
        window: The model's `ruled_window`.
        tables: Layer index to float32 [variants, kv_heads, rows, edges], on the CPU; by single rows, on the device,
            while layers that share its keys are being measured.
        pulled: Called in every backward pass with the layer that made the keys, q, k, v, the gradient at the output
            [query_heads, N, D] and the softmax.
        watch: Called in every forward pass with the layer, q [query_heads, N, D] and k [kv_heads, N, D].
    """

    def __init__(
        self, model: ModelInfo, variants: Sequence[Variant], estimator: Estimator, plan: Plan | None, window: int | None
    ) -> None:
        self.model, self.layers = model, frozenset(model.ruled_layers)
        self.sources = model.sources
        self._shared = {layer for layer, readers in zip(model.ruled_layers, model.readers, strict=True) if readers > 1}
        self.estimator, self.plan, self.window = estimator, plan, window
        self.sinks = tuple(sinks(PATTERNS[name].holds, size)[0] for name, size in variants)
        self.tables: dict[int, Tensor] = {}
        self.pulled: Callable[[int, Tensor, Tensor, Tensor, Tensor, Softmax], None] | None = None
        self.watch: Callable[[int, Tensor, Tensor], None] | None = None

    def by_row(self, layer: int) -> bool:
        """Return whether rows are added up over layers that share keys before they are squared."""
        return self.estimator is fisher and layer in self._shared

    def fused(self, q: Tensor, layer: int) -> bool:
        """Return whether the back-end's fused kernels measure: it has them, for this estimator, and no plan is on."""
        plain = self.plan is None and self.estimator in (fisher, effect) and not self.by_row(layer)
        kernels = influence(pick(q.device)) if plain else None
        return kernels is not None and bool(kernels.takes(q))

    def add(self, layer: int, table: Tensor, size: int, last: bool) -> None:
        """Add what the backward pass measured of a layer's keys in one layer that reads them, last in their own."""
        if layer in self._shared and layer in self.tables:
            table = table + self.tables[layer]
        if last and self.by_row(layer):
            table = in_bins(table.square(), size)
        self.tables[layer] = table.cpu() if last else table

    def rules(self, layer: int, length: int, device: torch.device) -> Visibility | None:
        """Return what the rows of a layer see under the plan, None when dense."""
        if self.plan is None:
            return None
        first = torch.from_numpy(self.plan.first_table(layer, -(-length // BLOCK)))
        sink = torch.from_numpy(self.plan.reach(layer).sink.astype("int32"))
        return Visibility(first.to(device), sink.to(device))

    def holds(self, layer: int) -> tuple[str, ...]:
        """Return which keys the sinks of a layer's groups hold under the plan, by name; empty when dense."""
        return () if self.plan is None else self.plan.holds(layer)

    def histories(self, layer: int) -> list[History | None]:
        """Return which keys the sinks of a layer's groups hold under the plan, as they change; empty when dense."""
        return [history(name) for name in self.holds(layer)]

    @contextmanager
    def dense(self) -> Iterator[None]:
        """Let the model run dense within the block, whatever the plan."""
        plan, self.plan = self.plan, None
        try:
            yield
        finally:
            self.plan = plan

    def take(self) -> Tensor:
        """Return the finished sample's table [variants, layers, kv_heads, rows, edges], and empty the recorder."""
        missing = self.layers - self.tables.keys()
        if missing:
            raise Unsupported(
                f"layers {sorted(missing)} never called transformers' attention interface; only models whose "
                "attention goes through it can be profiled"
            )
        table = torch.stack([self.tables[layer] for layer in sorted(self.layers)], dim=1)
        self.tables.clear()
        return table


class _Recorded(torch.autograd.Function):
    """Causal attention of one sequence; its backward pass records the harm of every cut."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax: Softmax, recorder: Recorder, layer: int, last: bool
    ) -> Tensor:
        """Return the output [query_heads, N, D] for q [query_heads, N, D] and k, v [kv_heads, N, D] of a layer."""
        ctx.softmax, ctx.recorder, ctx.layer, ctx.last = softmax, recorder, layer, last
        if recorder.fused(q, layer):
            kernels = influence(pick(q.device))
            assert kernels is not None
            out, lse = kernels.forward(q, k, v, softmax=softmax)
            ctx.save_for_backward(q, k, v, out, lse)
            return out  # type: ignore[no-any-return]
        ctx.save_for_backward(q, k, v)
        seen = recorder.rules(layer, q.shape[1], q.device)
        if seen is not None:
            apart = attend_alone(
                *(x.transpose(0, 1) for x in (q, k, v)), seen=seen, holds=recorder.holds(layer), softmax=softmax,
                backend=load(ANYWHERE.name),
            )  # fmt: skip
            return apart.transpose(0, 1)
        heads = q.shape[0] // k.shape[0]
        if not softmax.is_plain:
            return tiled.attend(q.unflatten(0, (-1, heads)), k, v, None, softmax).flatten(0, 1)
        k, v = (x.repeat_interleave(heads, 0)[None] for x in (k, v))
        return nn.functional.scaled_dot_product_attention(q[None], k, v, is_causal=True, scale=softmax.scale)[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients, and add the table to the recorder."""
        q, k, v, *ours = ctx.saved_tensors
        recorder: Recorder = ctx.recorder
        size, by_row = bin_size(q.shape[1]), recorder.by_row(ctx.layer)
        if ours:
            kernels, (out, lse) = influence(pick(q.device)), ours
            assert kernels is not None
            dq, dk, dv, table = kernels.influence_backward(
                q, k, v, out, lse, grads[0].contiguous(), softmax=ctx.softmax, sinks=recorder.sinks, bin_size=size,
                squared=recorder.estimator is fisher,
            )  # fmt: skip
        else:
            dq, dk, dv, table = influence_backward(
                q, k, v, grads[0], softmax=ctx.softmax, estimator=effect if by_row else recorder.estimator,
                sinks=recorder.sinks, bin_size=size, seen=recorder.rules(ctx.layer, q.shape[1], q.device),
                histories=recorder.histories(ctx.layer), by_row=by_row,
            )  # fmt: skip
        recorder.add(ctx.layer, table, size, ctx.last)
        if recorder.pulled is not None:
            recorder.pulled(ctx.layer, q, k, v, grads[0], ctx.softmax)
        return dq, dk, dv, None, None, None, None


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Return attention [1, N, query_heads, D] of query [1, query_heads, N, D], by transformers' attention interface."""
    attend: own.Attention = getattr(module, _RECORDER)
    return attend(module, query, key, value, attention_mask, **kwargs)


def _recorded(
    recorder: Recorder, layer: int, module: nn.Module, query: Tensor, key: Tensor, value: Tensor,
    attention_mask: Tensor | None, **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Return the attention of a layer whose cuts are recorded, as `_attention` does."""
    if attention_mask is not None:
        raise Unsupported(f"profiling needs causal attention; layer {layer} has a mask of its own")
    softmax = softmax_of(module, query, kwargs)
    expansion = None
    if recorder.model.latent:
        key = value = latent.joined(key, value)
        expansion = latent.Expansion.of(module, query)
        query = expansion.query(query)
    check_heads(module, recorder.model, query, key, value)
    check_window(recorder.window, key.shape[2])
    if recorder.watch is not None:
        recorder.watch(layer, query[0], key[0])
    source = recorder.sources[layer]
    attended: Tensor = _Recorded.apply(query[0], key[0], value[0], softmax, recorder, source, layer == source)  # type: ignore[no-untyped-call]
    if expansion is not None:
        attended = expansion.value(attended)
    return attended.transpose(0, 1)[None], None


def _mask(windowed: Any = sdpa_mask, **kwargs: Any) -> Tensor | None:
    """Return the mask that transformers asks for; a window no shorter than the longest text counts as none."""
    if is_own(kwargs["mask_function"], kwargs["config"], kwargs.get("local_size")):
        return windowed(**kwargs)  # type: ignore[no-any-return]
    return sdpa_mask(**kwargs | {"local_size": None})  # type: ignore[no-any-return]


own.register(NAME, _attention, _mask)


@contextmanager
def recording(
    model: PreTrainedModel, variants: Sequence[Variant], estimator: Estimator = fisher, plan: Plan | None = None
) -> Iterator[Recorder]:
    """Let backward passes through `model` record within the block; afterwards the model is as it was.

    Args:
        model: The model; it runs under `plan` within the block.
        variants: Variants to measure: patterns and sizes of sinks, tokens.
        estimator: Function from a tile to the harm of every cut.
        plan: The plan; None is dense.
    """
    info = ModelInfo.of(model)
    attention = attention_modules(model, info)
    decoder = decoder_of(model, attention)
    recorder = Recorder(info, variants, estimator, plan, ruled_window(decoder.config, info))
    check_head(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    state = [{name: vars(b).get(name) for name in _CHECKPOINTING} for b in blocks]
    training = model.training
    embeddings = model.get_input_embeddings()
    name = own.name_for(decoder, attention.values(), NAME)
    ruled = {layer for layer in attention if info.sources[layer] in recorder.layers}  # others keep their windows
    held = {
        layer: partial(_recorded, recorder, layer) if layer in ruled else own.attention_of(name, module)
        for layer, module in attention.items()
    }
    before = switch(decoder, name)
    try:
        model.eval()
        for p in trained:
            p.requires_grad_(False)
        # A clone, since some models scale their embeddings in place, which autograd refuses of a leaf.
        hook = embeddings.register_forward_hook(lambda _module, _inputs, out: out.requires_grad_(True).clone())
        for block in blocks:
            block.training = True  # transformers checkpoints only layers in training mode; dropout inside stays off
            block.gradient_checkpointing = True
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        for layer, module in attention.items():
            setattr(module, _RECORDER, held[layer])
            if info.latent and layer in ruled:
                latent.keep(module)
        yield recorder
    finally:
        decoder.set_attn_implementation(before)
        for module in attention.values():
            module.__dict__.pop(_RECORDER, None)
            latent.expand(module)
        hook.remove()
        for block, before_block in zip(blocks, state, strict=True):
            for name, value in before_block.items():
                vars(block).pop(name, None)
                if value is not None:
                    setattr(block, name, value)
        model.train(training)
        for p in trained:
            p.requires_grad_(True)
