"""What is said at start-up: how much a plan saves here, and what would let it save more."""

from moa.plans.span import BLOCK
from moa_vllm.groups import Groups, kept

CHUNKS = (256, 512, 1024)
"""Values of --max-num-batched-tokens that are considered."""

NEAR = 1.1
"""The largest is advised that needs at most so many times the memory of the smallest: longer chunks compute faster."""


def share(groups: Groups, longest: int, in_flight: int) -> float:
    """Return the blocks that a request of the longest length needs, as a share of the dense model's.

    Args:
        groups: The KV-cache groups; all have equally many heads.
        longest: The longest text, tokens.
        in_flight: Most tokens of a request that are scheduled but not yet computed.
    """
    most = [kept(rules).most(longest, in_flight) for rules in groups.rules]
    return sum(most) / (len(most) * -(-longest // BLOCK))


def lines(groups: Groups, longest: int, chunk: int, steps: int, shared: bool) -> list[str]:
    """Return the lines.

    Args:
        groups: The KV-cache groups.
        longest: The longest text (--max-model-len), tokens.
        chunk: Most tokens of one step (--max-num-batched-tokens).
        steps: Steps that may be in flight at once.
        shared: Whether requests may share the pages of a common prefix.
    """
    now = share(groups, longest, steps * chunk)
    said = [
        f"{len(groups.of)} KV heads in {len(groups.rules)} KV-cache groups: over {longest:,} tokens they keep "
        f"{groups.share:.2f} of the dense model's blocks (each head alone: {groups.least:.2f}); a request needs "
        f"{now:.2f} while it is read in chunks of {chunk:,} tokens"
    ]
    shares = {size: share(groups, longest, steps * size) for size in CHUNKS if size < chunk}
    if shares and now > NEAR * min(shares.values()):
        size = max(size for size, found in shares.items() if found <= NEAR * min(shares.values()))
        said.append(f"--max-num-batched-tokens {size} would need {shares[size]:.2f}, so more requests fit at once")
    if not shared:
        said.append("prefix caching finds nothing under this plan: keydiff_window rewrites the pages of its sinks")
    return said
