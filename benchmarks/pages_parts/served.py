"""Write a block about what a shipped plan leaves of the dense model's blocks in vLLM: calculated, not measured."""

import sys
from pathlib import Path

from pages_parts.common import listed, table, wrapped

from moa.plans.plan import Plan
from moa.plans.span import BLOCK

sys.path.append(str(Path(__file__).parents[2] / "serving" / "vllm"))  # the plugin; this part of it needs no vLLM

from moa_vllm.advice import share
from moa_vllm.groups import Groups, kept, on_ranks, sort

NAME = "smollm2-135m-instruct-0.25"
HELD, LONGEST = 3000, 4096
"""Tokens of a text that has been read, and of the longest text."""
IN_FLIGHT = (256, 512, 2048, 4096)
"""Tokens in flight: a chunk of 256 or of vLLM's default, 2,048 tokens, and two of each."""


def freed() -> str:
    """Return the share of blocks that requests hold under the plan, by number of groups."""
    plan = Plan.load(NAME)
    heads = on_ranks(plan, 1)
    each, few = sort(heads, LONGEST, len(heads)), sort(heads, LONGEST)
    rows = []
    for groups, says in ((each, f"{len(heads)}, one per head"), (few, f"{len(few.rules)}, as the plugin takes")):
        needed = (share(groups, LONGEST, tokens) for tokens in IN_FLIGHT)
        rows.append([says, f"{holds(groups, HELD):.3f}", *(f"{part:.3f}" for part in needed)])
    fit = listed([f"{1 / share(groups, LONGEST, IN_FLIGHT[0]):.1f}" for groups in (each, few)])
    columns = "KV-cache groups", f"kept of {HELD:,}", *(f"needed, {tokens:,} in flight" for tokens in IN_FLIGHT)
    return "\n\n".join([
        wrapped(
            f"Calculated from the shipped plan `{NAME}` (fingerprint `{plan.fingerprint()}`), which keeps "
            f"{plan.density(HELD):.3f} of {HELD:,} tokens: the share of the dense model's blocks that a request holds "
            f"when {HELD:,} tokens have been read, and that it needs for {LONGEST:,} tokens by how many of them are in "
            f"flight at once. With {IN_FLIGHT[0]} in flight {fit} times as many requests fit as without a plan."
        ),
        table(columns, rows),
    ])  # fmt: skip


def holds(groups: Groups, tokens: int) -> float:
    """Return the blocks that are held behind the last token of a text, as a share of the dense model's."""
    last = (tokens - 1) // BLOCK
    gaps = [int(kept(rules).gap(last)) for rules in groups.rules]
    return 1 - sum(gaps) / (len(gaps) * (last + 1))
