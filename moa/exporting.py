"""Provide `moa.block_masks`: a plan as masks of torch's FlexAttention."""

from typing import TYPE_CHECKING

from moa.plans.errors import PlanError, Unsupported
from moa.plans.plan import Plan
from moa.plans.span import BLOCK, LONGEST

if TYPE_CHECKING:
    import torch
    from torch.nn.attention.flex_attention import BlockMask


def block_masks(plan: Plan, length: int, *, device: "str | torch.device" = "cpu") -> "dict[int, BlockMask]":
    """Return what a prefill of `length` tokens sees in each layer that follows a rule, for `flex_attention`.

    Args:
        plan: The plan; what a step reads of what is kept is not in a mask.
        length: Tokens.
        device: Device of the masks.

    Returns:
        By layer, a mask of one batch row and as many heads as the layer has query heads.

    Raises:
        PlanError: The length is out of range.
        Unsupported: Sinks hold keys that are chosen from the text, which no mask can say beforehand.
    """
    import torch

    from moa.kernels.flex import block_mask

    if not 1 <= length <= LONGEST:
        raise PlanError(f"length must be from 1 to {LONGEST}, found {length}")
    if plan.moves_keys():
        raise Unsupported(
            "a mask cannot say which keys the sinks of this plan hold, since they depend on the text; "
            "moa search --pattern sink_window finds plans with sinks of first keys"
        )
    masks = {
        layer: block_mask(
            torch.as_tensor(plan.first_table(layer, -(-length // BLOCK)), device=device),
            torch.tensor(plan.reach(layer).sink, device=device), plan.model.group_size, length, length,
        )
        for layer in plan.model.ruled_layers
    }  # fmt: skip
    return {layer: masks[source] for layer, source in plan.model.sources.items() if source in masks}
