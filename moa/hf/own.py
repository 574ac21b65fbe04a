"""Give the layers without rules the model's own attention and masks, beside the attention function that stands in.

One attention implementation serves a whole model, and its name is all that transformers hands to the code that makes
masks. So each of our implementations has two names, one for each way in which the other layers may attend.
"""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from moa.hf.softmax import traits
from moa.plans.errors import Unsupported

EAGER = "_eager"
"""The end of a name of ours by which the other layers attend by the model's own code; without it by torch's."""

Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def register(name: str, attention: Attention, mask: Callable[..., Any]) -> None:
    """Make an attention implementation of ours known to transformers, by both of its names.

    Args:
        name: The name.
        attention: By transformers' attention interface.
        mask: By transformers' mask interface; its argument `windowed` makes masks of the other layers.
    """
    for end, own in (("", sdpa_mask), (EAGER, eager_mask)):
        AttentionInterface.register(name + end, attention)
        AttentionMaskInterface.register(name + end, partial(mask, windowed=own))


def name_for(decoder: PreTrainedModel, modules: Iterable[torch.nn.Module], name: str) -> str:
    """Return the name of our implementation `name` by which the other layers of `decoder` attend as they do now.

    Attention by torch would drop soft-caps and learned sinks in silence, as transformers 5.17 lets it do for Gemma-2.

    Args:
        decoder: The model.
        modules: Its attention modules.
        name: The shorter name.
    """
    eager = decoder.config._attn_implementation in (None, "eager") or not decoder._supports_sdpa
    return name + EAGER if eager or any(any(traits(module)) for module in modules) else name


def attention_of(name: str, module: torch.nn.Module) -> Attention:
    """Return the attention function of a module without rules, under our implementation of that name.

    Raises:
        Unsupported: The module's own code has none.
    """
    if not name.endswith(EAGER):
        return sdpa_attention_forward  # type: ignore[no-any-return]
    found = inspect.unwrap(type(module).forward).__globals__.get("eager_attention_forward")
    if found is None:
        raise Unsupported(
            f'{type(module).__name__} has no eager attention: load the model with attn_implementation="sdpa"'
        )
    return found  # type: ignore[no-any-return]
