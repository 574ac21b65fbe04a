"""Make the rules of simple plans: one window for all groups, or full attention in some and a window in the rest."""

from collections.abc import Iterable

import numpy as np

from moa.plans import span as spans_
from moa.plans.errors import BudgetInfeasible, PlanError
from moa.plans.model import ModelInfo, whole
from moa.plans.patterns import FULL, Rule
from moa.plans.span import BLOCK


def uniform(density: float, at: int) -> Rule:
    """Return the rule of `Plan.uniform`."""
    if not 0 < density <= 1:
        raise PlanError(f"density must be over 0 and at most 1, found {density}")
    alphas = np.arange(2 * BLOCK, max(at, BLOCK) + 2 * BLOCK, BLOCK)  # the last covers all of `at`
    spans = spans_.span(BLOCK, alphas, 0, at)
    fitting = alphas[spans <= density * at + 1e-9]  # 0.29 * 100 is just under 29 in floating point
    if not fitting.size:
        raise BudgetInfeasible(f"density {density} at {at} tokens: the narrowest window keeps {spans[0] / at:.4g}")
    return Rule(alpha=int(fitting[-1]), beta=0)


def two_group(
    info: ModelInfo, full_heads: Iterable[tuple[int, int]], window: int, sink: int = BLOCK
) -> tuple[dict[int, list[Rule]], Rule]:
    """Return the rules of each layer, and that of the groups without full attention; see `Plan.two_group`.

    Args:
        info: The model.
        full_heads: (layer, KV head) of the groups with full attention.
        window: Tokens that the other groups see in addition to the sink.
        sink: Tokens of the other groups' sink, which is rounded up to whole blocks.
    """
    window, sink = whole("window", window), -(-whole("sink", sink) // BLOCK) * BLOCK
    narrow = Rule(sink=sink, alpha=sink + window, beta=0)
    groups = {layer: [narrow] * info.kv_heads for layer in info.ruled_layers}
    for layer, head in full_heads:
        if layer not in groups or not 0 <= head < info.kv_heads:
            raise PlanError(
                f"full_heads names layer {layer}, KV head {head}; layers that take rules are "
                f"{list(groups)}, KV heads 0 to {info.kv_heads - 1}"
            )
        groups[layer][head] = FULL
    return groups, narrow
