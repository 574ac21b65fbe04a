"""Describe what a plan or profile must know of its model. Transformers' objects are read, never imported."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from operator import index
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from moa.plans.config import (
    HYBRID,
    KEYLESS,
    RULED,
    SHARED,
    STATES,
    WINDOWS,
    architecture,
    latent_of,
    layer_count,
    layer_kinds,
    one_shape,
    rope_of,
    shapes,
    shared_layers,
    window_of,
)
from moa.plans.errors import PlanError, Unsupported, brief, shortened
from moa.plans.schema import Frozen, Strict, problem
from moa.plans.span import Ints

Dtype = Literal["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

_BYTES = dict(zip(DTYPES, (8, 4, 2, 2, 1, 1), strict=True))

Keyless = Literal["linear_attention", "conv", "moe", "mlp"]
Keyed = Literal["full_attention", "sliding_attention", "chunked_attention"]

RopeValue = bool | int | float | str | list[float] | None


class Sliding(Strict):
    """The layers that have a sliding window of the model's own; they take no rules."""

    window: int = Field(ge=2)
    """Most keys that a query sees, itself included."""
    layers: tuple[int, ...] = Field(min_length=1)
    """Their numbers."""
    kv_heads: int | None = Field(default=None, ge=1)
    """None where it is that of the layers with rules."""
    head_size: int | None = Field(default=None, ge=1)
    """None where it is that of the layers with rules."""
    chunked: bool | None = None
    """Whether the text is cut into chunks of `window` keys, and a query sees its own; None: it sees the last keys."""


class ModelInfo(Strict):
    """The shape of a model's attention: its fingerprint in plans and profiles."""

    architecture: str
    """Its class in transformers, such as `LlamaForCausalLM`."""
    layers: int = Field(ge=1)
    """Number of all layers, those without rules too."""
    query_heads: int = Field(ge=1)
    """Query heads of a layer."""
    kv_heads: int = Field(ge=1)
    """KV heads of a layer, each of which has a rule."""
    head_size: int = Field(ge=1)
    """Numbers in a key."""
    rope: Annotated[dict[str, RopeValue], AfterValidator(Frozen)]
    """How positions are encoded, in transformers' words."""
    name: str = "unnamed"
    """What people call the model; it is not compared."""
    sliding: Sliding | None = None
    """The layers with a sliding window of the model's own; they take no rules."""
    keyless: Annotated[dict[Keyless, tuple[int, ...]], AfterValidator(Frozen)] | None = None
    """The layers that keep no keys, by kind, in transformers' words: they take no rules."""
    shared: Annotated[dict[Keyed, tuple[int, ...]], AfterValidator(Frozen)] | None = None
    """The layers that attend to the keys, and by the rules, of the last layer that keeps some of this kind."""
    hybrid: tuple[int, ...] | None = None
    """The layers that take rules and keep a state beside their keys."""
    latent: int | None = Field(default=None, ge=1)
    """Where layers cache one vector of `head_size` numbers for all heads (MLA), how many of them, the first, are its
    latent; the others are the rotated part of the key. None where they cache keys and values."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.query_heads % self.kv_heads:
            raise ValueError(f"query_heads {self.query_heads} must be a multiple of kv_heads {self.kv_heads}")
        parts = {
            "sliding.layers": self.sliding.layers if self.sliding else (),
            "keyless": sorted(chain.from_iterable((self.keyless or {}).values())),
            "shared": sorted(chain.from_iterable((self.shared or {}).values())),
        }
        for name, layers in parts.items():
            if not set(layers) < set(range(self.layers)):
                raise ValueError(f"{name} must be some, not all, of 0 to {self.layers - 1}, found {list(layers)}")
        if len(self.ruled_layers) + sum(map(len, parts.values())) != self.layers:
            raise ValueError(f"a layer is listed twice among {', '.join(parts)}")
        if not self.ruled_layers:
            raise ValueError(f"{', '.join(parts)} must leave a layer that takes rules")
        if self.latent and (self.kv_heads > 1 or self.latent > self.head_size):
            raise ValueError(f"latent {self.latent} must be part of the head_size {self.head_size} of one KV head")
        if not set(self.hybrid or ()) <= set(self.ruled_layers):
            raise ValueError(f"hybrid must be some of the layers with rules, {list(self.ruled_layers)}")
        for kind, layers in (self.shared or {}).items():
            own = [layer for layer, name in enumerate(self.kinds) if name == kind]
            if not own or own[-1] > min(layers, default=self.layers):
                raise ValueError(f"shared.{kind} must follow all layers that are {kind}, {own}, found {list(layers)}")
        return self

    @classmethod
    def of(cls, model: Any) -> "ModelInfo":
        """Return the fingerprint of a transformers model or its config; a ModelInfo is returned as it is."""
        return model if isinstance(model, ModelInfo) else cls.from_config(getattr(model, "config", model))

    @classmethod
    def from_config(cls, config: Any) -> "ModelInfo":
        """Read a transformers `PretrainedConfig` (of a multimodal model: its text part).

        `architecture` is the first that the config names; where it names none, it is the config's class name
        with `ForCausalLM` for `Config`. Of rope parameters per layer type, full attention's are taken.

        Raises:
            Unsupported: No layer can take rules, some layer is of an unknown kind, or the numbers do not fit each
                other.
        """
        named = architecture(config)
        layers = layer_count(config)
        kinds = layer_kinds(config, layers)
        hybrid = tuple(layer for layer, kind in enumerate(kinds) if kind == HYBRID)
        kinds = [RULED if kind == HYBRID else kind for kind in kinds]
        shared = shared_layers(config, kinds)
        for layer in chain.from_iterable(shared.values()):
            kinds[layer] = SHARED
        windowed = next((kind for kind in WINDOWS if kind in kinds), None)
        sliding = tuple(layer for layer, kind in enumerate(kinds) if kind in WINDOWS)
        keyless = {kind: tuple(i for i, own in enumerate(kinds) if own == kind) for kind in KEYLESS if kind in kinds}
        each = shapes(config, layers)
        query_heads, kv_heads, head_size = one_shape(named, [(i, each[i]) for i, k in enumerate(kinds) if k == RULED])
        try:
            window = None
            if windowed is not None:
                _, sliding_kv_heads, size = one_shape(named, [(i, each[i]) for i in sliding])
                window = Sliding.model_validate({
                    "window": window_of(config, windowed) or 0, "layers": sliding,
                    "chunked": windowed == "chunked_attention" or None,
                    "kv_heads": None if sliding_kv_heads == kv_heads else sliding_kv_heads,
                    "head_size": None if size == head_size else size,
                })  # fmt: skip
            return cls.model_validate(
                {
                    "architecture": named,
                    "layers": layers,
                    "query_heads": query_heads,
                    "kv_heads": kv_heads,
                    "head_size": head_size,
                    "rope": _rope(config),
                    "name": Path(str(getattr(config, "_name_or_path", ""))).name or "unnamed",
                    "sliding": window,
                    "keyless": keyless or None,
                    "shared": shared or None,
                    "hybrid": hybrid or None,
                    "latent": latent_of(config, kinds.index(RULED), layers),
                }
            )
        except ValidationError as error:
            raise Unsupported(f"the config of {named}: {problem(error)}") from None

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def ruled_layers(self) -> tuple[int, ...]:
        """The layers that take rules, ascending."""
        return tuple(layer for layer, kind in enumerate(self.kinds) if kind == RULED)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer, in transformers' words, or `SHARED`."""
        found = dict.fromkeys(range(self.layers), RULED)
        if self.sliding:
            found |= dict.fromkeys(
                self.sliding.layers, "chunked_attention" if self.sliding.chunked else "sliding_attention"
            )
        for kind, layers in (self.keyless or {}).items():
            found |= dict.fromkeys(layers, kind)
        found |= dict.fromkeys(chain.from_iterable((self.shared or {}).values()), SHARED)
        return tuple(found[layer] for layer in range(self.layers))

    @property
    def keyed_layers(self) -> tuple[int, ...]:
        """The layers that keep keys and values, ascending."""
        return tuple(layer for layer, kind in enumerate(self.kinds) if kind not in (*KEYLESS, SHARED))

    @property
    def sources(self) -> dict[int, int]:
        """The layer whose keys each layer that attends reads, ascending: itself, or an earlier one."""
        kinds, found = self.kinds, {layer: layer for layer in self.keyed_layers}
        for kind, layers in (self.shared or {}).items():
            found |= dict.fromkeys(layers, max(layer for layer, own in enumerate(kinds) if own == kind))
        return dict(sorted(found.items()))

    @property
    def readers(self) -> Ints:
        """How many layers read the keys of each layer with rules, itself included: int64 [ruled layers]."""
        sources = list(self.sources.values())
        return np.array([sources.count(layer) for layer in self.ruled_layers], np.int64)

    @property
    def stateful_layers(self) -> tuple[int, ...]:
        """The layers that keep a state of a constant size, in place of keys or beside them, ascending."""
        hybrid = self.hybrid or ()
        return tuple(layer for layer, kind in enumerate(self.kinds) if kind in STATES or layer in hybrid)

    @property
    def others(self) -> dict[str, int]:
        """The number of layers of each kind that takes no rules."""
        return {kind: count for kind, count in Counter(self.kinds).items() if kind != RULED}

    def kv_shape(self, layer: int) -> tuple[int, int, int]:
        """Return the number of KV heads of a layer, and the sizes of the two tensors that it caches for each.

        They are a key and a value; where latents are cached, the latent and the rotated part of the key.
        """
        other = self.sliding if self.sliding and layer in self.sliding.layers else None
        size = (other and other.head_size) or self.head_size
        sizes = (self.latent, size - self.latent) if self.latent else (size, size)
        return (other and other.kv_heads) or self.kv_heads, *sizes

    def differences(self, other: "ModelInfo") -> list[str]:
        """Return one entry per field that differs, such as `layers: 30 against 32`; names are not compared."""
        return [
            f"{field}: {_short(getattr(self, field))} against {_short(getattr(other, field))}"
            for field in type(self).model_fields
            if field != "name" and getattr(self, field) != getattr(other, field)
        ]

    def dense_kv_bytes(self, n: int | Sequence[int], batch_size: int = 1, dtype: Any = "float32") -> int:
        """Return the bytes of keys and values in transformers' `DynamicCache`, which pads a batch to its longest.

        Args:
            n: Tokens seen: one length for the whole batch, or the true length of each sequence.
            batch_size: Sequences; with a list of lengths, 1 or the list's length.
            dtype: As for `Plan.kv_bytes`.
        """
        lengths = batch_lengths(n, batch_size)
        stored = int(lengths.max()) * len(lengths) * len(self.ruled_layers) * self.kv_heads
        return stored * self.token_bytes(dtype) + self.sliding_kv_bytes(lengths, dtype)

    def sliding_kv_bytes(self, lengths: Ints, dtype: Any) -> int:
        """Return the bytes of keys and values in layers without rules, for one batch of sequences of `lengths` tokens.

        Between calls, transformers' `DynamicSlidingWindowLayer` keeps the last window - 1 positions of the
        padded batch.
        """
        if self.sliding is None:
            return 0
        stored = min(int(lengths.max()), self.sliding.window - 1) * len(lengths)
        kv_heads, *sizes = self.kv_shape(self.sliding.layers[0])
        return stored * len(self.sliding.layers) * kv_heads * sum(sizes) * dtype_bytes(dtype)

    def ruled_share(self, n: int) -> float:
        """Return the share of the bytes of keys and values at `n` tokens that a plan can reach."""
        return 1 - self.sliding_kv_bytes(batch_lengths(n, 1), 1) / self.dense_kv_bytes(n, dtype=1)

    def token_bytes(self, dtype: Any) -> int:
        """Return the bytes of one token in one KV head of a layer with rules: key and value, or the latent vector."""
        return (self.head_size if self.latent else 2 * self.head_size) * dtype_bytes(dtype)


def dtype_bytes(dtype: Any) -> int:
    """Return the bytes of one element of `dtype`: a name such as "bfloat16", a torch dtype, or the bytes themselves."""
    if isinstance(dtype, int) and dtype > 0:
        return dtype
    name = str(dtype).removeprefix("torch.")
    found = {str(known): size for known, size in _BYTES.items()}.get(name)
    if found is None:
        raise PlanError(f"dtype must be one of {', '.join(DTYPES)} or a number of bytes, found {brief(dtype)}")
    return found


def whole(name: str, value: Any) -> int:
    """Return an option that counts something, 1 or more, as an int.

    Raises:
        PlanError: It is anything else.
    """
    with suppress(TypeError):
        if (number := index(value)) >= 1:
            return number
    raise PlanError(f"{name} must be an integer of 1 or more, found {brief(value)}")


def batch_lengths(n: int | Sequence[int], batch_size: int) -> Ints:
    """Return the true length of each sequence of a batch, int64 [batch], given one length or a list of them."""
    lengths = np.atleast_1d(np.asarray(n))
    if lengths.ndim != 1 or not lengths.size or lengths.dtype.kind not in "iu" or lengths.min() < 0:
        raise PlanError(f"n must be a length or a list of lengths, each an integer of 0 or more, found {brief(n)}")
    if np.ndim(n) == 0:
        if batch_size < 1:
            raise PlanError(f"batch_size must be 1 or more, found {batch_size}")
        lengths = np.repeat(lengths, batch_size)
    elif batch_size not in (1, len(lengths)):
        raise PlanError(f"batch_size for {len(lengths)} lengths must be 1 or {len(lengths)}, found {batch_size}")
    return lengths.astype(np.int64)


def _rope(config: Any) -> dict[str, RopeValue]:
    """Return rope parameters with the keys `theta` and `type` first, then the rest by name."""
    found = rope_of(config)
    named = {"theta": found.get("rope_theta"), "type": found.get("rope_type", "default")}
    rest = {key: found[key] for key in sorted(found) if key not in ("rope_theta", "rope_type")}
    return {key: value for key, value in (named | rest).items() if value is not None}


def _short(value: Any) -> str:
    return shortened(str(value.model_dump() if isinstance(value, BaseModel) else value), 200)
