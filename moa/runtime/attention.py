"""Provide the attention and the mask function of a model under a plan, registered with transformers under one name.

The functions have no state: it is stored on the model's attention modules, so that models with different plans do not
affect each other. An argument that the functions cannot honour raises an error that names it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from moa.hf import latent, own
from moa.hf.attention import check_heads
from moa.hf.masks import check_2d, is_causal, is_own, is_windowed
from moa.hf.padding import Packing
from moa.hf.softmax import softmax_of
from moa.kernels.backend import Backend, load, pick
from moa.kernels.call import Packed
from moa.kernels.dispatch import attend_given
from moa.kernels.registry import BACKENDS, find
from moa.kernels.softmax import Softmax
from moa.kernels.spec import Ability
from moa.plans.errors import Unsupported, brief
from moa.runtime.rules import Rules
from moa.runtime.staged import ATTRIBUTE, Staged

NAME = "moa"
"""The attention implementation's name in transformers."""


class Backends:
    """The back-end of each device: the one that the user named, or else the device's default."""

    def __init__(self, name: str | None, *, reads: bool = False, latent: bool = False) -> None:
        """Name a back-end, or none; it must read less than is kept where `reads`, attend to latents where `latent`."""
        self._name, self.reads = name, reads
        needs: dict[Ability, str] = {"read": "read less than a plan keeps"} if reads else {}
        self._needs = needs | ({"latent": "attend to latent vectors"} if latent else {})
        self._loaded: dict[str, Backend] = {}

    def on(self, device: torch.device) -> Backend:
        """Return the back-end for tensors on `device`, which differs from the model's where weights are offloaded.

        Raises:
            Unsupported: It cannot run here, or lacks an ability that the plan needs.
        """
        backend = self._loaded.get(device.type)
        if backend is None:
            backend = load(self._name or pick(device), device)
            for ability, what in self._needs.items():
                if ability not in find(backend.name).can:
                    able = ", ".join(spec.name for spec in BACKENDS if ability in spec.can and spec.takes(device.type))
                    raise Unsupported(f"back-end {backend.name} cannot {what}: choose {able}")
            self._loaded[device.type] = backend
        return backend

    def loaded(self) -> list[Backend]:
        """Return the back-ends that `on` has returned so far."""
        return list(self._loaded.values())


@dataclass(frozen=True)
class LayerState:
    """What `moa.apply` stores on an attention module.

    Attributes:
        attends_by: The rules of the layer, or the model's own attention function where the layer takes no rules.
        backends: The back-ends that compute attention.
        is_hooked: Returns whether the decoder still has the pre-hook that checks each call.
    """

    attends_by: Rules | own.Attention
    backends: Backends
    is_hooked: Callable[[], bool]


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor | Staged,
    value: Tensor | Staged,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention under the plan; transformers calls it through its attention interface.

    Args:
        module: The attention module, which holds a `LayerState`.
        query: Queries [batch, query_heads, width, D].
        key: Handle of a `KVCache`, or keys [batch, kv_heads, past + width, D]; of layers that cache latents, those.
        value: Values, like key; of layers that cache latents, the rotated parts of keys.
        attention_mask: The result of `mask`: bool [batch, past + width], or None when no token is padding.
        dropout: Must be 0.
        kwargs: The other arguments that the model passes; those that `softmax_of` reads are honoured.

    Returns:
        [batch, width, query_heads, D], 0 where padded, and None for the weights.

    Raises:
        Unsupported: The plan is not fully attached to the model, or an argument asks for what rules cannot honour.
    """
    state: LayerState | None = module.__dict__.get(ATTRIBUTE)
    if state is None:
        raise Unsupported(
            f"{type(module).__name__} shares its config with another model that is under a plan: "
            "give each model a config of its own (copy.deepcopy)"
        )
    if not torch.compiler.is_compiling() and not state.is_hooked():
        raise Unsupported(
            "the decoder has lost the pre-hook of moa.apply: call Applied.remove() and apply the plan again"
        )
    rules = state.attends_by
    if not isinstance(rules, Rules):
        return rules(module, query, key, value, attention_mask, dropout=dropout, **kwargs)
    _refuse(module, key, attention_mask, dropout, kwargs)
    softmax = softmax_of(module, query, kwargs)
    backend = state.backends.on(query.device)
    k, v = (key.k, key.v) if isinstance(key, Staged) else (key, value)
    assert isinstance(k, Tensor)
    assert isinstance(v, Tensor)
    if rules.latent:
        backend = latent.attending(backend, module)
        if not isinstance(key, Staged):
            k = v = latent.joined(k, v)
    check_heads(module, rules.model, query, k, v)
    with torch.no_grad(), _exact(query.device):
        q = query.to(v.dtype)  # autocast leaves queries and keys in float32, by their rotary embedding
        if isinstance(key, Staged):
            out = key.attend(q, attention_mask, softmax=softmax, backend=backend)
        else:
            out = _without_cache(rules, backend, q, k.to(v.dtype), v, attention_mask, softmax)
    needs_grad = (
        next((x for x in (query, k, v, kwargs.get("s_aux")) if x is not None and x.requires_grad), None)
        if torch.is_grad_enabled()
        else None
    )
    if needs_grad is not None:
        out = _NoGradient.apply(needs_grad, out)  # type: ignore[no-untyped-call]
    return out, None


def _exact(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without autocast, which would compute float32 scores in half precision, where they overflow."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def mask(
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Tensor | None = None,
    windowed: Any = sdpa_mask,
    **kwargs: Any,
) -> Tensor | None:
    """Return the mask for `attention`; transformers calls it through its mask interface.

    Args:
        q_length: Number of new columns.
        kv_length: Number of columns, past and new.
        q_offset: Number of past columns; a tensor when the cache has a fixed length.
        mask_function: Must be causal, except in layers with a window of the model's own.
        attention_mask: The caller's mask, bool [batch, columns], false where padded.
        windowed: Makes the masks of layers with a window of the model's own.
        kwargs: The other arguments that transformers passes.

    Returns:
        bool [batch, kv_length], or None when nothing is padded. For windows of the model's own, what `windowed` makes.

    Raises:
        Unsupported: The mask is not causal, or has a wrong number of columns.
    """
    if is_own(mask_function, kwargs["config"], kwargs.get("local_size")):
        return windowed(  # type: ignore[no-any-return]
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            **kwargs,
        )
    if is_windowed(mask_function):
        mask_function = causal_mask_function
    if mask_function is bidirectional_mask_function:
        raise Unsupported("bidirectional attention under a plan: rules are causal")
    if not is_causal(mask_function):
        raise Unsupported(
            "packed sequences and masks other than causal and padding under a plan: pass one text per row and a 2-D "
            "attention_mask"
        )
    if attention_mask is None:
        return None
    may_sync = (attention_mask.device.type == "cpu" or q_length > 1) and not torch.compiler.is_compiling()
    columns, fixed = attention_mask.shape[1], isinstance(q_offset, Tensor)
    if columns != kv_length and not (fixed and columns < kv_length):
        _wrong_width(kv_length, columns)
    if not fixed:
        return None if may_sync and attention_mask.all() else attention_mask
    if columns < kv_length:
        assert isinstance(q_offset, Tensor)
        if not may_sync:
            torch._assert_async(q_offset + q_length == columns, "attention_mask must have a column for every token")
        elif columns != int(q_offset) + q_length:
            _wrong_width(int(q_offset) + q_length, columns)
        attention_mask = torch.nn.functional.pad(attention_mask, (0, kv_length - columns))
    return attention_mask


def _wrong_width(wanted: int, found: int) -> NoReturn:
    """Refuse a mask whose number of columns is wrong."""
    raise Unsupported(f"attention_mask must have a column for each of {wanted} tokens, cached and new, found {found}")


def register() -> None:
    """Register both functions with transformers; apart from their name, nothing is global."""
    own.register(NAME, attention, mask)


class _NoGradient(torch.autograd.Function):
    """Marks a result without a gradient, so that `backward` raises an error instead of skipping weights in silence."""

    @staticmethod
    def forward(ctx: Any, needs_grad: Tensor, out: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise Unsupported("gradients through attention under a plan: remove the plan to train (Applied.remove())")


_TENSORS = {"position_ids", "cache_position", "num_items_in_batch", "s_aux"}
"""Tensors that models pass to attention: `s_aux` is honoured, the others it does not need."""
_TYPES = {"token_type_ids", "mm_token_type_ids"}
"""Tensors that are 0 where a token is plain text."""


def _refuse(
    module: torch.nn.Module, key: Tensor | Staged, mask: Tensor | None, dropout: float, kwargs: dict[str, Any]
) -> None:
    """Refuse every argument of `attention` that rules cannot honour."""
    if module.training or dropout:
        raise Unsupported("training mode under a plan: call model.eval(), or remove the plan to train")
    if mask is not None:
        check_2d(mask)
    window = kwargs.get("sliding_window")  # has no effect on texts that are shorter than it (`window_of`)
    if (
        window is not None
        and not torch.compiler.is_compiling()
        and window < (key.columns if isinstance(key, Staged) else key.shape[2])
    ):
        raise Unsupported(f"a sliding window ({kwargs['sliding_window']}) on a layer that the plan has rules for")
    if kwargs.get("is_causal", True) is False:
        raise Unsupported("bidirectional attention under a plan: rules are causal")
    for name, given in kwargs.items():
        if isinstance(given, Tensor) and name not in _TENSORS and not (name in _TYPES and not given.any()):
            raise Unsupported(f"the attention argument {brief(name)} of {type(module).__name__} under a plan")


def _without_cache(
    rules: Rules, backend: Backend, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, softmax: Softmax
) -> Tensor:
    """Return attention where all keys are given: without a cache, or with a `DynamicCache`, which saves no memory."""
    device = key.device
    batch, _, columns, _ = key.shape
    new, past = query.shape[2], columns - query.shape[2]
    if mask is not None and mask.shape[1] != columns:
        raise Unsupported(f"attention_mask must have a column for each of {columns} keys, found {mask.shape[1]}")
    lengths = torch.zeros(batch, dtype=torch.int64, device=device)
    before = None
    if past:
        old = Packing(None if mask is None else mask[:, :past], batch, past, device)
        k, v = old.pack(key[:, :, :past]), old.pack(value[:, :, :past])
        before = k, v, Packed(old.cu_seqlens, lengths, past)
        lengths = lengths + (past if mask is None else mask[:, :past].sum(1))
    now = Packing(None if mask is None else mask[:, past:], batch, new, device)
    q, k, v = now.pack(query), now.pack(key[:, :, past:]), now.pack(value[:, :, past:])
    out = attend_given(
        q, k, v, batch=Packed(now.cu_seqlens, lengths, new), past=before, seen=rules.visibility(columns, device),
        holds=rules.holds, softmax=softmax, backend=backend, reading=rules.reading(device),
    )  # fmt: skip
    return now.unpack(out)
