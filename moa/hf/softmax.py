"""Read from what an attention module passes on how its scores become weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from moa.kernels.softmax import Softmax
from moa.plans.errors import Unsupported

TRAITS = {"softcap": "attn_logit_softcapping", "s_aux": "sinks"}
"""Arguments of transformers' attention interface, and the attributes of modules that they pass on."""


def softmax_of(module: torch.nn.Module, query: Tensor, given: Mapping[str, Any]) -> Softmax:
    """Return the softmax that an attention module asks for.

    Args:
        module: The attention module.
        query: Its queries [batch, query_heads, width, D].
        given: The arguments by name that it passes to its attention function: `scaling` (by default D ** -0.5),
            `softcap`, and `s_aux`, the logits of learned sinks.

    Raises:
        Unsupported: The module has a soft-cap or learned sinks of another kind.
    """
    scale, cap, sinks = given.get("scaling"), given.get("softcap"), given.get("s_aux")
    for argument, attribute in TRAITS.items():
        if given.get(argument) is None and getattr(module, attribute, None) is not None:
            raise Unsupported(f"{type(module).__name__} has {attribute} that it does not pass on as {argument}")
    if sinks is not None:
        if sinks.shape != query.shape[1:2]:
            raise Unsupported(
                f"learned sinks must be one number for each of {query.shape[1]} query heads, found a tensor of "
                f"{list(sinks.shape)} from {type(module).__name__}"
            )
        sinks = sinks.detach().to(query.device, torch.promote_types(sinks.dtype, torch.float32)).contiguous()
    return Softmax(query.shape[-1] ** -0.5 if scale is None else scale, cap, sinks)


def traits(module: torch.nn.Module) -> tuple[bool, bool]:
    """Return whether a module has a soft-cap, and whether it has learned sinks."""
    cap, sinks = (getattr(module, attribute, None) is not None for attribute in TRAITS.values())
    return cap, sinks
