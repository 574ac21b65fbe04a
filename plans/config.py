"""Read what a transformers config says of its model's attention, from all the fields that say it."""

from collections.abc import Mapping, Sequence
from typing import Any

from moa.plans.errors import Unsupported, brief

RULED = "full_attention"
"""The kind of layer that takes rules, in transformers' words, as all kinds."""
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""The kinds of layer that have a window of the model's own, and the field of a config that says its size."""
HYBRID = "hybrid"
"""The kind of layer with full attention and, beside its keys, a state; it takes rules."""
KEYLESS = ("linear_attention", "conv", "moe", "mlp")
"""The kinds of layer that keep no keys: states of a constant size, or nothing."""
STATES = ("linear_attention", "conv")
"""Those that keep a state."""
SHARED = "shared"
"""The kind of layer that attends to the keys of an earlier layer and keeps none, in our word."""

Shape = tuple[int, int, int]
"""Query heads, KV heads, head size."""


def text_config(config: Any) -> Any:
    """Return the part of a config that describes the text decoder."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def architecture(config: Any) -> str:
    """Return the first architecture that a config names, or its class name with `ForCausalLM` for `Config`."""
    text = text_config(config)
    named = getattr(config, "architectures", None) or getattr(text, "architectures", None)
    stem = type(text).__name__.removesuffix("Config").removesuffix("Text")
    return str(named[0]) if named and isinstance(named, Sequence) else f"{stem}ForCausalLM"


def rope_of(config: Any) -> Mapping[str, Any]:
    """Return the rope parameters; where they differ by layer type, those of full attention."""
    found = getattr(text_config(config), "rope_parameters", None)
    if not isinstance(found, Mapping):
        return {"rope_type": "none"}
    inner = found.get(RULED, found.get(HYBRID, found))
    return inner if isinstance(inner, Mapping) else {"rope_type": "none"}


def longest_text(config: Any) -> int | None:
    """Return the tokens of the longest text that a model is for; None where its config does not say.

    `max_position_embeddings` is the length before rope scaling in some configs (Qwen's YaRN) and after it in others
    (DeepSeek, Llama 3). So the result is the larger of it and the scaling's `factor` times the positions that the
    scaling starts from.
    """
    text, rope = text_config(config), rope_of(config)
    positions = _whole(getattr(text, "max_position_embeddings", None))
    if positions is None:
        return None
    factor, start = rope.get("factor"), _whole(rope.get("original_max_position_embeddings")) or positions
    if not isinstance(factor, int | float) or rope.get("rope_type") in (None, "default", "none"):
        return positions
    return max(positions, round(factor * start))


def window_of(config: Any, kind: str = "sliding_attention") -> int | None:
    """Return the window of layers of a kind of `WINDOWS`; None where it is no shorter than the longest text."""
    window = _count(config, WINDOWS[kind])
    return None if window is None or not is_shorter(config, window) else window


def is_shorter(config: Any, window: int) -> bool:
    """Return whether a window is shorter than the longest text."""
    longest = longest_text(config)
    return longest is None or window < longest


def layer_count(config: Any) -> int:
    """Return the number of layers; refuse all but decoders with attention heads, to the text alone."""
    text, named = text_config(config), architecture(config)
    for field in ("num_hidden_layers", "num_attention_heads", "hidden_size"):
        if not getattr(text, field, None):
            raise Unsupported(f"the config of {named} has no {field}: not a decoder with attention heads")
    if getattr(text, "is_encoder_decoder", False):
        raise Unsupported(f"{named} is an encoder-decoder model; plans are for decoder-only models")
    if getattr(text, "cross_attention_layers", None):
        raise Unsupported(f"{named} has layers that attend to pictures (cross-attention); each must attend to the text")
    layers = by_layer(config, "num_hidden_layers", 1)[0]
    assert layers is not None  # refused above
    return layers


def layer_kinds(config: Any, layers: int) -> list[str]:
    """Return each layer's kind, in transformers' words; layers whose window is that of the longest text are full.

    Raises:
        Unsupported: `layer_types` is not a list with one entry per layer, no plan is for a kind, no layer is full, or
            layers have a window of no size or of two kinds.
    """
    named = _named_kinds(config, layers)
    found = [RULED if kind in WINDOWS and window_of(config, kind) is None else kind for kind in named]
    _check_kinds(config, found)
    return found


def layer_windows(config: Any, layers: int) -> list[int | None]:
    """Return the window that the config gives each layer, also where it is no shorter than the longest text."""
    return [_count(config, WINDOWS[kind]) if kind in WINDOWS else None for kind in _named_kinds(config, layers)]


def shared_layers(config: Any, kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the layers that attend to the keys of the last layer of their kind that keeps some, by that kind.

    Args:
        config: The config, which says how many layers at the end do so.
        kinds: The kind of each layer, from `layer_kinds`.

    Raises:
        Unsupported: No layer before them keeps the keys, or one of another kind.
    """
    named, shared = _named_kinds(config, len(kinds)), _count(config, "num_kv_shared_layers") or 0
    keeping, found = range(len(kinds) - shared), dict[str, tuple[int, ...]]()
    for layer in range(len(keeping), len(kinds)):
        kind = kinds[layer]
        of = {max((i for i in keeping if of_all[i] == of_all[layer]), default=None) for of_all in (named, kinds)}
        if len(of) > 1 or None in of:
            raise Unsupported(
                f"layer {layer} of {architecture(config)} shares the keys of an earlier layer of kind {named[layer]}, "
                f"and the last before it that counts as {kind} is another or none"
            )
        found[kind] = (*found.get(kind, ()), layer)
    return found


def _named_kinds(config: Any, layers: int) -> list[str]:
    text = text_config(config)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # inferred as transformers does for configs that name no layer types
        chunked = getattr(text, "attention_chunk_size", None) is not None
        sliding = _count(config, "sliding_window") is not None
        kinds = ["sliding_attention" if sliding else "chunked_attention" if chunked else RULED] * layers
    if not isinstance(kinds, Sequence) or isinstance(kinds, str) or len(kinds) != layers:
        raise Unsupported(f"layer_types in the config of {architecture(config)} must name {layers} layers")
    for kind, field in WINDOWS.items():
        if kind in kinds and _count(config, field) is None:
            raise Unsupported(f"the config of {architecture(config)} has {kind} layers and no {field}")
    return [str(kind) for kind in kinds]


def _check_kinds(config: Any, kinds: Sequence[str]) -> None:
    named, known = architecture(config), (RULED, HYBRID, *WINDOWS, *KEYLESS)
    for layer, kind in enumerate(kinds):
        if kind not in known:
            raise Unsupported(f"layer {layer} of {named} is {kind}; plans know {', '.join(known)}")
    if set(kinds) == {"sliding_attention"}:
        raise Unsupported(
            f"every layer of {named} has its own sliding window of {window_of(config)}, so none takes a rule; for "
            'texts within that window, set "sliding_window": null in its config.json, and its layer_types to '
            "full_attention where it has them"
        )
    if not {RULED, HYBRID} & set(kinds):
        raise Unsupported(
            f"none of {named}'s layers is {RULED}, so none takes a rule: they are {', '.join(dict.fromkeys(kinds))}"
        )
    if set(WINDOWS) <= set(kinds):
        raise Unsupported(f"{named} has {' and '.join(WINDOWS)} layers; plans know one kind of window")


def by_layer(config: Any, field: str, layers: int) -> list[int | None]:
    """Return a field's value in each layer, None where it has none; values may be lists, or differ by layer.

    Raises:
        Unsupported: A value is no positive whole number, or a list has another length.
    """
    text = text_config(config)
    if getattr(text, "is_heterogeneous", False):
        given = [getattr(text.per_layer_config[layer], field, None) for layer in range(layers)]
    else:
        value = getattr(text, field, None)
        given = list(value) if isinstance(value, list | tuple) else [value] * layers
    if len(given) != layers:
        raise Unsupported(f"{field} in the config of {architecture(config)} must be one value, or one for each layer")
    return [_checked(config, field, value) for value in given]


def shapes(config: Any, layers: int) -> list[Shape]:
    """Return the shape of each layer's attention; where latents are cached, all query heads share one vector."""
    query, kv, size, width, rank, rotary = (
        by_layer(config, field, layers)
        for field in (
            "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "kv_lora_rank", "qk_rope_head_dim",
        )
    )  # fmt: skip
    found = zip(query, kv, size, width, rank, rotary, strict=True)
    return [
        (q or 0, 1, c + (r or 0)) if c else (q or 0, k or q or 0, d or (w or 0) // (q or 1))
        for q, k, d, w, c, r in found
    ]


def latent_of(config: Any, layer: int, layers: int) -> int | None:
    """Return how many of the numbers that a layer caches of a token are its latent (MLA); None where it has none."""
    return by_layer(config, "kv_lora_rank", layers)[layer]


def one_shape(named: str, layers: Sequence[tuple[int, Shape]]) -> Shape:
    """Return the shape that all of these layers share.

    Raises:
        Unsupported: They do not.
    """
    first, shape = layers[0]
    other = next(((layer, found) for layer, found in layers if found != shape), None)
    if other is not None:
        raise Unsupported(
            f"layers {first} and {other[0]} of {named} differ in query heads, KV heads or head size, {shape} and "
            f"{other[1]}; plans know one shape of full attention, and one of sliding"
        )
    return shape


def _count(config: Any, field: str) -> int | None:
    return _checked(config, field, getattr(text_config(config), field, None))


def _checked(config: Any, field: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise Unsupported(
            f"{field} in the config of {architecture(config)} must be a positive whole number, found {brief(value)}"
        )
    return value or None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
