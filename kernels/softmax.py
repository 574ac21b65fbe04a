"""The softmax over the keys that a row sees: the factor on its scores, a soft-cap, learned sinks."""

from typing import NamedTuple

import torch
from torch import Tensor


class Softmax(NamedTuple):
    """How the scores q·k of a row become weights.

    Attributes:
        scale: Factor on q·k.
        cap: A soft-cap: a score s becomes cap * tanh(s / cap) before any key is hidden. None means none.
        sink_logits: Learned sinks [query_heads], float32 at least and contiguous: the logit of one more key, which
            every row of the head sees and whose value is 0; it is neither scaled nor capped. None means none.
    """

    scale: float
    cap: float | None = None
    sink_logits: Tensor | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is what library attention computes."""
        return self.cap is None and self.sink_logits is None

    def sinks_of(self, groups: int) -> Tensor | None:
        """Return the learned sinks by KV head, [groups, heads of a group]."""
        return None if self.sink_logits is None else self.sink_logits.view(groups, -1)

    def part(self, which: slice | list[int] | Tensor, groups: int) -> "Softmax":
        """Return that of some of the `groups` KV heads."""
        sinks = self.sinks_of(groups)
        return self if sinks is None else self._replace(sink_logits=sinks[which].flatten())

    def capped(self, scores: Tensor) -> Tensor:
        """Return the scaled scores, capped."""
        return scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)


def weights(scores: Tensor, sink_logits: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """Return the softmax of scores [..., keys], and the weight of a learned sink [..., 1], 0 if there is none.

    Args:
        scores: Capped scores, -inf where a key is hidden.
        sink_logits: One per row, or of a shape that broadcasts to rows [...]; None without learned sinks.
    """
    if sink_logits is None:
        return scores.softmax(-1), 0.0
    column = sink_logits[..., None].expand(*scores.shape[:-1], 1).to(scores.dtype)
    both = torch.cat([scores, column], -1).softmax(-1)
    return both[..., :-1], both[..., -1:]
