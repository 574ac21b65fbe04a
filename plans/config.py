"""Read what a transformers config says of its model's attention, from all the fields that say it."""

from collections.abc import Mapping, Sequence
from typing import Any

from moa.plans.errors import Unsupported, brief


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
    inner = found.get("full_attention", found)
    return inner if isinstance(inner, Mapping) else {"rope_type": "none"}


def longest_text(config: Any) -> int | None:
    """Return the tokens of the longest text that a model is for; None where its config does not say.

    Some configs give positions before rope scaling (YaRN as Qwen has it), some after (as DeepSeek, or Llama 3): of
    `max_position_embeddings` and the scaling's `factor` times the positions that it starts from, the larger counts.
    """
    text, rope = text_config(config), rope_of(config)
    positions = _whole(getattr(text, "max_position_embeddings", None))
    if positions is None:
        return None
    factor, start = rope.get("factor"), _whole(rope.get("original_max_position_embeddings")) or positions
    if not isinstance(factor, int | float) or rope.get("rope_type") in (None, "default", "none"):
        return positions
    return max(positions, round(factor * start))


def window_of(config: Any) -> int | None:
    """Return the keys that queries of sliding layers see; None where no window is shorter than the longest text."""
    window, longest = _count(config, "sliding_window"), longest_text(config)
    return None if window is None or (longest is not None and window >= longest) else window


def layer_kinds(config: Any, layers: int) -> list[str]:
    """Return each layer's kind of attention, in transformers' words.

    Raises:
        Unsupported: `layer_types` is not a list with one entry per layer, or layers slide without a window.
    """
    text = text_config(config)
    kinds = getattr(text, "layer_types", None)
    if kinds is None:  # inferred as transformers does for configs that name no layer types
        chunked = getattr(text, "attention_chunk_size", None) is not None
        sliding = _count(config, "sliding_window") is not None
        kinds = ["sliding_attention" if sliding else "chunked_attention" if chunked else "full_attention"] * layers
    if not isinstance(kinds, Sequence) or isinstance(kinds, str) or len(kinds) != layers:
        raise Unsupported(f"layer_types in the config of {architecture(config)} must name {layers} layers")
    if "sliding_attention" in kinds and _count(config, "sliding_window") is None:
        raise Unsupported(f"the config of {architecture(config)} has sliding layers and no sliding_window")
    if window_of(config) is None:
        return ["full_attention" if kind == "sliding_attention" else str(kind) for kind in kinds]
    return [str(kind) for kind in kinds]


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
