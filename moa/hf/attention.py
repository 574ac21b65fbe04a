"""Find the attention modules of a transformers model, by layer, and refuse by name those that no rule can honour."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from moa.hf import latent
from moa.plans.config import text_config
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo

REFUSED: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda module: bool(getattr(module, "is_cross_attention", False)), "attends to another model (cross-attention)"),
    (lambda module: not module.is_causal, "is bidirectional; plans are causal"),
    (
        lambda module: getattr(module, "indexer", None) is not None,
        "chooses the keys of each query itself, by an indexer",
    ),
    (
        lambda module: "ALL_ATTENTION_FUNCTIONS" not in inspect.unwrap(type(module).forward).__code__.co_names,
        "does not use transformers' attention interface",
    ),
)
"""Whether an attention module has a trait, and what an error says of it."""


def attention_modules(model: Any, info: ModelInfo) -> dict[int, torch.nn.Module]:
    """Return the attention module of each layer that attends to keys, in the order of the layers.

    They are found by the attributes that transformers' attention interface needs.

    Args:
        model: A transformers model, bare or wrapped (peft).
        info: Its shape.

    Raises:
        Unsupported: A module has a feature that rules cannot honour, or a layer has no module of its own.
    """
    modules: dict[int, torch.nn.Module] = {}
    text = type(text_config(model.config))  # attention to pictures has a config of another type
    for path, module in model.named_modules():
        layer, config = getattr(module, "layer_idx", None), getattr(module, "config", None)
        if not hasattr(module, "is_causal") or not isinstance(config, text):
            continue
        name = type(module).__name__
        if info.hybrid and layer in (None, -1):  # Zamba ties the weights of its layers, and tells in each call which
            layer = next((int(part) for part in reversed(path.split(".")) if part.isdecimal()), None)
        if not isinstance(layer, int):
            continue
        for has, trait in REFUSED:
            if has(module):
                raise Unsupported(f"{name} {trait}")
        if info.latent:
            latent.check(module)
        if layer in modules:
            raise Unsupported(f"layer {layer} has two attentions, {type(modules[layer]).__name__} and {name}")
        modules[layer] = module
    wanted = info.sources
    if extra := sorted(modules.keys() - set(wanted)):
        layer = extra[0]
        raise Unsupported(
            f"layer {layer} is {info.kinds[layer]}, and has an attention, {type(modules[layer]).__name__}"
        )
    if len(modules) < len(wanted):
        raise Unsupported(
            f"{info.architecture} does not use transformers' attention interface: "
            f"found attention modules for {len(modules)} of {len(wanted)} layers"
        )
    return {layer: modules[layer] for layer in wanted}


def check_heads(module: torch.nn.Module, info: ModelInfo, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Refuse heads other than those of the config: a config may hold fields that its model does not read.

    Args:
        module: The attention module that passes them on.
        info: The shape that the config describes.
        query: [batch, query_heads, width, D].
        key: [batch, kv_heads, keys, D].
        value: [batch, kv_heads, keys, D].

    Raises:
        Unsupported: They differ; the error names both.
    """
    found = query.shape[1], key.shape[1], key.shape[3], value.shape[1], value.shape[3]
    said = info.query_heads, info.kv_heads, info.head_size, info.kv_heads, info.head_size
    if found[2] != found[4]:
        raise Unsupported(
            f"{type(module).__name__} has keys of size {found[2]} and values of size {found[4]}; plans need one size "
            "of both: use the model without a plan"
        )
    if found != said:
        raise Unsupported(
            f"{type(module).__name__} has {found[0]} query heads, {found[1]} key heads of size {found[2]} and "
            f"{found[3]} value heads of size {found[4]}; by its config there are {info.query_heads} query heads and "
            f"{info.kv_heads} key and value heads of size {info.head_size}"
        )


def decoder_of(model: Any, modules: dict[int, torch.nn.Module]) -> PreTrainedModel:
    """Return the innermost model whose config the attention modules read.

    Raises:
        Unsupported: There is none, or it has a cache of its own.
    """
    config = next(iter(modules.values())).config
    owners = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config is config]
    if not owners:
        raise Unsupported(f"{type(model).__name__} is not a transformers model")
    forward = inspect.unwrap(type(owners[-1]).forward)
    known = (forward.__globals__.get(name) for name in forward.__code__.co_names)
    own = (found for found in known if isinstance(found, type) and issubclass(found, Cache))
    if other := next((found.__name__ for found in own if found.__module__ != Cache.__module__), None):
        raise Unsupported(f"{type(owners[-1]).__name__} has a cache of its own, {other}, whose states no other holds")
    return owners[-1]


def switch(decoder: PreTrainedModel, name: str) -> str:
    """Let `decoder` attend by the attention function `name` of ours, and return the name of the one it had.

    Raises:
        Unsupported: It attends by one of ours already, or transformers does not let its attention be changed.
    """
    before: str = decoder.config._attn_implementation
    if before.startswith("moa"):
        raise Unsupported(
            "the model, or another one that shares its config object, is being profiled or is under a plan: "
            "remove it first"
        )
    decoder.set_attn_implementation(name)
    if decoder.config._attn_implementation != name:
        raise Unsupported(f"{type(decoder).__name__} does not use transformers' attention interface")
    return before
