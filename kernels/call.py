"""What one attention call is about: a packed batch, and what its rows see."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from moa.plans.span import Ints


class Packed(NamedTuple):
    """New tokens of a batch, packed without padding.

    Attributes:
        cu_seqlens: int32 [sequences + 1], offsets of each sequence's new tokens.
        past: int64 [sequences], tokens that each sequence had before.
        most: New tokens of the sequence with the most, or a bound of them.
        every: Whether every sequence has a new token; a back-end's `step` needs one.
        longest_past: Upper bounds of `past` that the host knows without a wait [sequences]; None where `past` may be
            read.
    """

    cu_seqlens: Tensor
    past: Tensor
    most: int
    every: bool = False
    longest_past: Ints | None = None


class Visibility(NamedTuple):
    """What the rows of one layer see.

    Attributes:
        first: int32 [kv_heads, blocks], first block besides the sink per query block.
        sink: int32 [kv_heads], tokens.
        first_at: The same first blocks on the host: from positions [n] to [n, kv_heads].
    """

    first: Tensor
    sink: Tensor
    first_at: Callable[[Ints], Ints]
