"""Sinks that hold other keys than the first: between steps, the sink's pages hold what the next query sees.

When a block leaves the window, the best of its keys and of the sink's are written to the sink's pages, in place, so
that an ordinary kernel reads them. `moa.kernels.keydiff` says which are best. A key's score is kept beside its page.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moa.kernels.keydiff.selection import PINNED, Scores, held
from moa.plans.span import BLOCK
from moa_vllm import pages


class Request(NamedTuple):
    """New tokens of one request.

    Attributes:
        begin: Its first row in the batch.
        new: New tokens, 1 or more.
        length: Its length, new tokens included.
        edges: For each block from that of the first new token on, the first block besides the sink that its queries
            see; the last one is for the query that comes next.
        table: Its block table, int32.
    """

    begin: int
    new: int
    length: int
    edges: list[int]
    table: Tensor


class Text:
    """Keys and values of one request in one KV head: the sink's, then all from the first block besides it on."""

    def __init__(self, request: Request, sink: int, scores_of: Scores, cache: Tensor, score: Tensor) -> None:
        """Copy them.

        Args:
            request: The request; its new keys are in the pages.
            sink: Blocks of the sink.
            scores_of: Scores keys.
            cache: The pages of the KV head.
            score: The scores of keys in sinks [pages, 64].
        """
        self.request, self.sink = request, sink
        first, last = request.edges[0], -(-request.length // BLOCK)
        self.own = request.table[: min(sink, last)].long()
        self.k, self.v = pages.load(cache, torch.cat([self.own, request.table[first:last].long()]))
        count = request.length - BLOCK * (first - sink) if last > sink else request.length
        self.k, self.v = self.k[:count], self.v[:count]
        leaving = BLOCK * (sink + max(request.edges[-1] - first, 0))  # keys of which some are left out in this step
        self.score = torch.full((1, count), -torch.inf)
        begin = 0
        if first > sink:
            begin = BLOCK * sink
            self.score[0, :begin] = score[self.own].flatten()
        if leaving > begin and request.edges[-1] > sink:
            self.score[0, begin:leaving] = scores_of(self.k[begin:leaving])
        if first == sink:
            self.score[0, :PINNED] = torch.inf
        self._held = torch.arange(BLOCK * sink)[None, None]  # [edges, 1, sink]
        if request.edges[-1] > first:
            self._held = held(self.score[:, :leaving], BLOCK * sink)

    def held(self, edge: int) -> Tensor:
        """Return which keys the sink holds when `edge` is the first block besides it: indices, int64 [64 * sink]."""
        return self._held[edge - self.request.edges[0], 0]

    def attend(self, query: Tensor, scale: float) -> Tensor:
        """Return the attention of the new tokens, [new, query heads, head size] like `query`."""
        request, past = self.request, self.request.length - self.request.new
        out = torch.empty_like(query)
        at = past
        for i, edge in enumerate(request.edges):
            block = past // BLOCK + i
            end = min(BLOCK * (block + 1), request.length)
            if end <= at or (edge <= self.sink and end < request.length and request.edges[i + 1] <= self.sink):
                continue  # blocks that see everything are computed together
            k, v = self.k[:end], self.v[:end]
            if edge > self.sink:
                shift = BLOCK * (self.sink - request.edges[0])
                index = torch.cat([self.held(edge), torch.arange(BLOCK * edge + shift, end + shift)])
                k, v = self.k[index], self.v[index]
            rows = slice(at - past, end - past)
            seen = torch.ones(end - at, len(k), dtype=torch.bool).tril(len(k) - (end - at))
            q = query[rows].transpose(0, 1)
            found = scaled_dot_product_attention(
                q[None], k[None, None], v[None, None], seen, scale=scale, enable_gqa=True
            )
            out[rows] = found[0].transpose(0, 1)
            at = end
        return out

    def leave(self, cache: Tensor, score: Tensor) -> None:
        """Let the sink's pages hold what the next query sees."""
        index = self.held(self.request.edges[-1])
        pages.store(cache, self.own, self.k[index], self.v[index])
        score[self.own] = self.score[0, index].view(-1, BLOCK)
