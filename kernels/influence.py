"""Run the backward pass of causal attention and measure, in the same sweep, the harm of every cut of every KV head.

This is the operation in plain PyTorch, for any device; `kernels/triton/influence.py` has it as fused kernels. It holds
one tile of query rows at a time: `A`, `dP` and `D` of a flash-attention backward (arXiv 2205.14135, algorithm 4), never
an N x N tensor. The caller's `estimator` says what a cut costs, given a tile.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moa.kernels.call import Visibility
from moa.kernels.sink_contents import History, Sink
from moa.kernels.softmax import Softmax, weights
from moa.plans.span import BLOCK

NO_MASS = 1e-30
"""Kept attention mass below which a cut is taken to remove the whole output: products with it underflow in float32.

Weights are sums of positive numbers, so a smaller one than their sum's rounding still has its own precision.
"""


@dataclass(frozen=True)
class StaticSink:
    """A sink that holds the first keys of the text.

    Attributes:
        sink: Slots, tokens.
    """

    sink: int

    def sums(self, x: Tensor, edges: int) -> Tensor:
        """Return the sum of `x` [heads, rows, keys] over the first keys: [heads, rows, 1], the same at each edge."""
        return x[..., : self.sink].sum(-1, keepdim=True)


@dataclass(frozen=True)
class ChangingSink:
    """What a sink that does not hold the first keys holds at every edge, in one group.

    Attributes:
        sink: Slots, tokens.
        keys: Positions that it holds at some edge, rising [keys].
        member: Whether it holds them at an edge, 0 or 1 in the type of sums [keys, edges].
    """

    sink: int
    keys: Tensor
    member: Tensor

    @classmethod
    def of(cls, positions: Tensor, dtype: torch.dtype) -> "ChangingSink":
        """Return the sink made from the positions held at each edge [edges, sink]."""
        keys, which = positions.unique(return_inverse=True)
        member = torch.zeros(len(positions), len(keys), dtype=dtype, device=keys.device).scatter_(1, which, 1)
        return cls(positions.shape[1], keys, member.T.contiguous())

    def sums(self, x: Tensor, edges: int) -> Tensor:
        """Return the sum of `x` [heads, rows, keys] over keys held at each of `edges` edges: [heads, rows, edges]."""
        there = int((self.keys < x.shape[-1]).sum())
        return x[..., self.keys[:there]] @ self.member[:there, :edges]


@dataclass(frozen=True)
class Tile:
    """A tile of attention: rows of one KV group against all keys up to the last row.

    Attributes:
        a: Attention weights [heads, rows, keys], zero above the diagonal.
        dp: Gradient of the loss at the weights, dO_i . V_j [heads, rows, keys].
        d: Row sums of a * dp, equal to dO_i . O_i [heads, rows, 1].
        sinks: What the sinks to measure hold.
        bin_size: Tokens per edge bin.
        sunk: Weight of a learned sink in each row [heads, rows, 1]; 0 where there is none.
    """

    a: Tensor
    dp: Tensor
    d: Tensor
    sinks: Sequence[StaticSink | ChangingSink]
    bin_size: int
    sunk: Tensor | float = 0.0

    def kept(self, x: Tensor) -> Tensor:
        """Return the sum of `x` [heads, rows, keys] over the keys each cut keeps: [sinks, heads, rows, edges].

        A cut at edge e keeps the sink and every key from e * bin_size on; everything when the two meet.
        """
        pad = -x.shape[-1] % self.bin_size
        bins = torch.nn.functional.pad(x, (0, pad)).unflatten(-1, (-1, self.bin_size)).sum(-1)
        suffix = bins.flip(-1).cumsum(-1).flip(-1)
        starts = torch.arange(bins.shape[-1], device=x.device) * self.bin_size
        added = [(sink.sink, sink.sums(x, len(starts))) for sink in self.sinks]
        return torch.stack([torch.where(starts > sink, suffix + sums, suffix[..., :1]) for sink, sums in added])


Estimator = Callable[[Tile], Tensor]
"""Function from a tile to the harm of every cut [sinks, rows, edges], the group's heads taken together."""


def influence_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
    *,
    softmax: Softmax,
    estimator: Estimator,
    sinks: Sequence[Sink],
    bin_size: int,
    seen: Visibility | None = None,
    histories: Sequence[History | None] = (),
    by_row: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of causal attention, and the summed harm of every cut.

    Under rules (`seen`) the gradients are those of attention under them; harm is still what a cut takes away
    from full attention, in a model that runs under the rules.

    Args:
        q: Queries of one sequence [query_heads, N, D].
        k: Keys [kv_heads, N, D].
        v: Values [kv_heads, N, D].
        dout: Gradient at the attention output [query_heads, N, D].
        softmax: How scores become weights.
        estimator: Harm of every cut, given a tile.
        sinks: Sinks to measure.
        bin_size: Tokens per row and edge bin, a multiple of 64.
        seen: What rows see under the rules; None is full attention.
        histories: Which keys each group's sink holds under the rules; None is the first.
        by_row: Whether to leave the table's rows apart, for sums over layers that share keys; `in_bins` sums them.

    Returns:
        dq, dk, dv like q, k, v; and the table, float32 [sinks, kv_heads, rows, edges], rows and edges in bins
        of `bin_size`: the estimator's values summed over the rows of a bin.
    """
    groups, n, dim = k.shape
    heads = q.shape[0] // groups
    count = -(-n // bin_size)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=_sum(k)), torch.zeros_like(v, dtype=_sum(v))
    table = q.new_zeros((len(sinks), groups, n if by_row else count, count), dtype=torch.float32)
    positions = [sink.history and sink.history(k, sink.slots, bin_size) for sink in sinks]
    for g in range(groups):
        measured = [
            StaticSink(sink.slots) if of is None else ChangingSink.of(of[:, g], _sum(q))
            for sink, of in zip(sinks, positions, strict=True)
        ]
        ours = None  # what this group's sink holds under the rules
        if seen is not None and histories and (history := histories[g]) is not None:
            ours = history(k[g : g + 1], int(seen.sink[g]), BLOCK)
        mine = slice(g * heads, (g + 1) * heads)
        logits = None if softmax.sink_logits is None else softmax.sink_logits[mine, None]
        wide_k, wide_v = k[g].to(_sum(k)), v[g].to(_sum(v))  # products in half precision can overflow
        for start in range(0, n, BLOCK):
            stop = min(start + BLOCK, n)
            rows, keys, values = stop - start, wide_k[:stop], wide_v[:stop]
            qt, dt = (x[mine, start:stop].reshape(-1, dim).to(_sum(q)) for x in (q, dout))  # [heads * rows, D]
            scores = softmax.capped((qt @ keys.T).unflatten(0, (heads, rows)) * softmax.scale)  # [heads, rows, keys]
            slope = softmax.scale if softmax.cap is None else softmax.scale * (1 - (scores / softmax.cap).square())
            above = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
            scores[..., start:].masked_fill_(above, -torch.inf)
            a, sunk = weights(scores, logits)
            dp = (dt @ values.T).unflatten(0, (heads, rows))
            d = (a * dp).sum(-1, keepdim=True)
            harm = estimator(Tile(a, dp, d, measured, bin_size, sunk))  # [sinks, rows, edges]
            if by_row:
                table[:, g, start:stop, : harm.shape[-1]] = harm
            else:
                table[:, g, start // bin_size, : harm.shape[-1]] += harm.sum(1)
            if seen is not None:
                edge = int(seen.first[g, start // BLOCK])
                hidden = torch.arange(stop, device=q.device) < BLOCK * edge
                if ours is None:
                    hidden[: int(seen.sink[g])] = False
                elif hidden.any():
                    hidden[ours[edge, 0]] = False
                scores.masked_fill_(hidden, -torch.inf)
                a, _ = weights(scores, logits)
                d = (a * dp).sum(-1, keepdim=True)
            ds = ((dp - d) * a * slope).flatten(0, 1)  # [heads * rows, keys]
            dq[mine, start:stop] = (ds @ keys).unflatten(0, (heads, rows))
            dk[g, :stop] += ds.T @ qt
            dv[g, :stop] += a.flatten(0, 1).T @ dt
    return dq, dk.to(k.dtype), dv.to(v.dtype), table


def change(mass: Tensor, weighted: Tensor, d: Tensor) -> Tensor:
    """Return the first-order change of the loss where a row keeps only some keys: their mean of dP, less that of all.

    Args:
        mass: Sum of the weights that are kept, a learned sink's included.
        weighted: Sum of weight * dP over the keys kept, like `mass`.
        d: `Tile.d`.
    """
    return torch.where(mass > NO_MASS, weighted / mass, 0.0) - d


def in_bins(rows: Tensor, bin_size: int) -> Tensor:
    """Return a table of bins [sinks, kv_heads, bins, edges], summed from one of rows [sinks, kv_heads, N, edges]."""
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[2] % bin_size))
    table: Tensor = padded.unflatten(2, (-1, bin_size)).sum(3)
    return table


def _sum(x: Tensor) -> torch.dtype:
    """Return the dtype of products, sums and softmax, at least float32."""
    return torch.promote_types(x.dtype, torch.float32)
