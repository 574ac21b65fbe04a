"""What a plan or profile must know of its model. Transformers' objects are read, never imported."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import BaseModel, Field, ValidationError, model_validator

from moa.plans.errors import PlanError, Unsupported, brief, shortened
from moa.plans.schema import Strict, problem
from moa.plans.span import Ints

Dtype = Literal["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

_BYTES = dict(zip(DTYPES, (8, 4, 2, 2, 1, 1), strict=True))

RopeValue = bool | int | float | str | list[float] | None


class Sliding(Strict):
    """Layers with a sliding window of the model's own: they take no rules."""

    window: int = Field(ge=2)
    """Keys that a query sees, itself included."""
    layers: tuple[int, ...] = Field(min_length=1)


class ModelInfo(Strict):
    """The shape of a model's attention: its fingerprint in plans and profiles."""

    architecture: str
    layers: int = Field(ge=1)
    query_heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_size: int = Field(ge=1)
    rope: dict[str, RopeValue]
    name: str = "unnamed"
    sliding: Sliding | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.query_heads % self.kv_heads:
            raise ValueError(f"query_heads {self.query_heads} must be a multiple of kv_heads {self.kv_heads}")
        if self.sliding and not set(self.sliding.layers) < set(range(self.layers)):
            raise ValueError(
                f"sliding.layers must be some, not all, of 0 to {self.layers - 1}, found {list(self.sliding.layers)}"
            )
        return self

    @classmethod
    def of(cls, model: Any) -> "ModelInfo":
        """The fingerprint of `model`: a transformers model, its config, or a ModelInfo, returned as it is."""
        return model if isinstance(model, ModelInfo) else cls.from_config(getattr(model, "config", model))

    @classmethod
    def from_config(cls, config: Any) -> "ModelInfo":
        """Read a transformers `PretrainedConfig` (of a multimodal model: its text part).

        `architecture` is the first that the config names; where it names none, it is the config's class name
        with `ForCausalLM` for `Config`. Of rope parameters per layer type, full attention's are taken.

        Raises:
            Unsupported: No layer can take rules, some layer is neither full nor sliding attention, or the numbers
                do not fit each other.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        architecture = _architecture(config, text)
        _refuse_other_models(text, architecture)
        try:
            return cls(
                architecture=architecture,
                layers=text.num_hidden_layers,
                query_heads=text.num_attention_heads,
                kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
                head_size=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
                rope=_rope(text),
                name=Path(str(getattr(config, "_name_or_path", ""))).name or "unnamed",
                sliding=_sliding(text, architecture),
            )
        except ValidationError as error:
            raise Unsupported(f"the config of {architecture}: {problem(error)}") from None

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    @property
    def ruled_layers(self) -> tuple[int, ...]:
        """The layers that take rules, ascending: all but the model's own sliding ones."""
        sliding = self.sliding.layers if self.sliding else ()
        return tuple(layer for layer in range(self.layers) if layer not in sliding)

    def differences(self, other: "ModelInfo") -> list[str]:
        """One entry per field that differs, as `layers: 30 against 32`; names are not compared."""
        return [
            f"{field}: {_short(getattr(self, field))} against {_short(getattr(other, field))}"
            for field in type(self).model_fields
            if field != "name" and getattr(self, field) != getattr(other, field)
        ]

    def dense_kv_bytes(self, n: int | Sequence[int], batch_size: int = 1, dtype: Any = "float32") -> int:
        """Bytes of the model's own cache, transformers' `DynamicCache`, which pads a batch to its longest.

        Args:
            n: Tokens seen: one length for the whole batch, or the true length of each sequence.
            batch_size: Sequences; with a list of lengths, 1 or the list's length.
            dtype: As for `Plan.kv_bytes`.
        """
        lengths = batch_lengths(n, batch_size)
        stored = int(lengths.max()) * len(lengths) * len(self.ruled_layers) * self.kv_heads
        return stored * self.token_bytes(dtype) + self.sliding_kv_bytes(lengths, dtype)

    def sliding_kv_bytes(self, lengths: Ints, dtype: Any) -> int:
        """Bytes that the layers without rules hold for one batch of sequences of `lengths` tokens.

        Between calls, transformers' `DynamicSlidingWindowLayer` keeps the last window - 1 positions of the
        padded batch.
        """
        if self.sliding is None:
            return 0
        stored = min(int(lengths.max()), self.sliding.window - 1) * len(lengths)
        return stored * len(self.sliding.layers) * self.kv_heads * self.token_bytes(dtype)

    def token_bytes(self, dtype: Any) -> int:
        """Bytes of the key and the value of one token in one KV head."""
        return 2 * self.head_size * dtype_bytes(dtype)


def dtype_bytes(dtype: Any) -> int:
    """Bytes of one element of `dtype`: a name such as "bfloat16", a torch dtype, or the bytes themselves."""
    if isinstance(dtype, int) and dtype > 0:
        return dtype
    name = str(dtype).removeprefix("torch.")
    found = {str(known): size for known, size in _BYTES.items()}.get(name)
    if found is None:
        raise PlanError(f"dtype must be one of {', '.join(DTYPES)} or a number of bytes, found {brief(dtype)}")
    return found


def batch_lengths(n: int | Sequence[int], batch_size: int) -> Ints:
    """The true length of each sequence of a batch, int64 [batch], from one length or a list of them."""
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


def _architecture(config: Any, text: Any) -> str:
    named = getattr(config, "architectures", None) or getattr(text, "architectures", None)
    stem = type(text).__name__.removesuffix("Config").removesuffix("Text")
    return str(named[0]) if named else f"{stem}ForCausalLM"


def _refuse_other_models(text: Any, architecture: str) -> None:
    """Refuse what is not a decoder whose every layer keeps one key and one value per KV head."""
    for field in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        if not getattr(text, field, None):
            raise Unsupported(f"the config of {architecture} has no {field}: not a decoder with attention heads")
    if getattr(text, "is_encoder_decoder", False):
        raise Unsupported(f"{architecture} is an encoder-decoder model; plans are for decoder-only models")
    if getattr(text, "kv_lora_rank", None) is not None:
        raise Unsupported(f"{architecture} caches latent vectors; plans are for one key and value per KV head")
    if getattr(text, "num_kv_shared_layers", None):
        raise Unsupported(f"{architecture} shares keys and values between layers; each must have its own")


def _rope(text: Any) -> dict[str, RopeValue]:
    """Rope parameters with the keys `theta` and `type` first, then the others by name."""
    found: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {"rope_type": "none"}
    found = found.get("full_attention", found)
    named = {"theta": found.get("rope_theta"), "type": found.get("rope_type", "default")}
    others = {key: found[key] for key in sorted(found) if key not in ("rope_theta", "rope_type")}
    return {key: value for key, value in (named | others).items() if value is not None}


def _sliding(text: Any, architecture: str) -> Sliding | None:
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # inferred as transformers does for configs that name no layer types
        kind = "full_attention"
        if window is not None:
            kind = "sliding_attention"
        elif getattr(text, "attention_chunk_size", None) is not None:
            kind = "chunked_attention"
        kinds = [kind] * text.num_hidden_layers
    for layer, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise Unsupported(
                f"layer {layer} of {architecture} is {kind}; plans know full_attention and sliding_attention"
            )
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if len(layers) == len(kinds):
        raise Unsupported(
            f"every layer of {architecture} has its own sliding window of {window}, so none takes a rule; "
            "for texts within that window, load the model with sliding_window=None"
        )
    return Sliding(window=window, layers=layers) if layers else None


def _short(value: Any) -> str:
    return shortened(str(value.model_dump() if isinstance(value, BaseModel) else value), 200)
