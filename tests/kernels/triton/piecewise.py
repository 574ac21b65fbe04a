"""Whole texts fed to the kernels piece by piece, against float64 attention over the whole text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moa.kernels import reference
from moa.kernels.call import Packed, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, allocate, capacities, slots
from moa.kernels.triton import operations as kernels
from moa.plans.span import BLOCK, Reach, first_block, linear

Rules = Sequence[tuple[int, int, int]]  # sink, alpha, beta256 of each group
ONE_BLOCK, WINDOW, HALF, ALL = (0, 0, 0), (64, 128, 0), (64, -64, 128), (64, 0, 256)
NAN = float("nan")


@dataclass
class Text:
    """Whole texts of several sequences under a plan, fed to the kernels piece by piece."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    rules: Rules
    cap: float | None = None
    sink_logits: Tensor | None = None

    @property
    def softmax(self) -> Softmax:
        """What the texts' attention is computed with."""
        return Softmax(self.q[0].shape[-1] ** -0.5, self.cap, self.sink_logits)

    @property
    def sink(self) -> Tensor:
        return torch.tensor([rule[0] for rule in self.rules], dtype=torch.int32)

    def first(self, slack: int = 0) -> Tensor:
        blocks = max(len(x) for x in self.q) // BLOCK + 1 + slack
        sink, alpha, beta = np.array(self.rules).T[..., None]
        return torch.from_numpy(first_block(sink, alpha, beta, np.arange(blocks)).astype(np.int32))

    def seen(self, slack: int = 0) -> Visibility:
        """What rows see, by a table with `slack` columns too many."""
        return Visibility(self.first(slack), self.sink)

    def new(self, begin: Tensor, end: Tensor) -> tuple[list[Tensor], Packed]:
        """q, k, v of tokens begin to end of each sequence, and how they are packed."""
        spans = list(zip(begin.tolist(), end.tolist(), strict=True))
        packed = [torch.cat([x[a:b] for x, (a, b) in zip(xs, spans, strict=True)]) for xs in (self.q, self.k, self.v)]
        cu_seqlens = torch.nn.functional.pad((end - begin).cumsum(0), (1, 0)).to(torch.int32)
        return packed, Packed(cu_seqlens, begin, int((end - begin).max()))

    def store(self, ends: Tensor) -> Store:
        capacity = capacities(Reach(self.rules, [linear] * len(self.rules)), ends.numpy())
        store = allocate(capacity, self.q[0].shape[-1], self.q[0].dtype, "cpu")
        store.k.fill_(NAN)
        store.v.fill_(NAN)
        return store

    def poison(self, store: Store, begin: Tensor) -> None:
        """NaN into every slot that rows from `begin` on do not want."""
        wanted = torch.zeros(len(store.k), dtype=torch.bool)
        first = self.first()
        for s, past in enumerate(begin.tolist()):
            for g, (sink, _, _) in enumerate(self.rules):
                at = torch.arange(past)
                at = at[(at < sink) | (at // BLOCK >= first[g, past // BLOCK])]
                wanted[slots(at, self.sink[g], store.base[s, g], store.capacity[s, g])] = True
        store.k[~wanted] = store.v[~wanted] = NAN


def texts(lengths: Sequence[int], rules: Rules, heads: int, dim: int, dtype: torch.dtype) -> Text:
    g = torch.Generator().manual_seed(len(lengths) + heads * dim)
    groups = len(rules)

    def draw(n: int, count: int) -> Tensor:
        return torch.randn(n, count, dim, generator=g).to(dtype)

    return Text(
        [draw(n, groups * heads) for n in lengths], [draw(n, groups) for n in lengths],
        [draw(n, groups) for n in lengths],
        rules,
    )  # fmt: skip


def eager(q: Tensor, k: Tensor, v: Tensor, first: Tensor, sink: Tensor, softmax: Softmax) -> Tensor:
    """What plain PyTorch gives in the tensors' own precision, softmax in float32."""
    n, groups, _ = k.shape
    at = torch.arange(n)
    block = at // BLOCK
    kept = (at < sink[:, None])[:, None] | (block >= first[:, block][..., None])  # [kv_heads, rows, keys]
    seen = (kept & (at <= at[:, None])).repeat_interleave(q.shape[1] // groups, 0)
    k, v = (x.repeat_interleave(q.shape[1] // groups, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * softmax.scale
    if softmax.cap is not None:
        scores = softmax.cap * (scores / softmax.cap).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    if softmax.sink_logits is not None:
        scores = torch.cat([scores, softmax.sink_logits.to(q.dtype)[:, None, None].expand(-1, n, 1)], -1)
    weights = scores.softmax(-1, torch.promote_types(q.dtype, torch.float32))[..., :n]
    return torch.einsum("hqk,khd->qhd", weights.to(q.dtype), v)


def agree(text: Text, begin: Tensor, end: Tensor, out: Tensor) -> None:
    """`out`, packed, is within eager attention's own error plus two roundings of the largest value."""
    row = 0
    for s, (a, b) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        if a == b:
            continue
        q, k, v = text.q[s][:b], text.k[s][:b], text.v[s][:b]
        exact = reference.attend(
            q.double(), k.double(), v.double(), seen=text.seen(), softmax=text.softmax,
            batch=Packed(torch.tensor([0, b]), torch.zeros(1, dtype=torch.int64), b),
        )  # fmt: skip
        error = (eager(q, k, v, text.first(), text.sink, text.softmax) - exact).abs().max()
        allowed = error + 2 * torch.finfo(q.dtype).eps * v.double().abs().max()
        found = (out[row : row + b - a] - exact[a:]).abs().max()
        assert found <= allowed, f"sequence {s}: error {found:.2e}, allowed {allowed:.2e}"
        row += b - a
    assert row == len(out)


def feed(text: Text, stops: Sequence[Sequence[int]], decode: bool = False, filled: bool = False) -> None:
    """Feed the texts up to each of `stops` in turn, through one store, checking outputs and every written slot.

    With `decode`, by that operation after the first stop; with `filled`, the first stop only fills the store. As a
    growing cache, it gives `attend` no store before the first tokens; with `decode`, as a fixed one, an empty store.
    """
    ends = [torch.tensor(stop) for stop in stops]
    store, twin = text.store(ends[-1]), text.store(ends[-1])
    begin = torch.zeros_like(ends[0])
    for end in ends:
        (q, k, v), batch = text.new(begin, end)
        text.poison(store, begin)
        where = {"batch": batch, "seen": text.seen(slack=3)}
        call = {**where, "softmax": text.softmax}
        twin.k.copy_(store.k)
        twin.v.copy_(store.v)
        if decode and begin.any():
            agree(text, begin, end, kernels.decode(q, k, v, store=store, **call))
        else:
            if begin.any() or not filled:
                past = store if begin.any() or decode else None
                agree(text, begin, end, kernels.attend(q, k, v, store=past, **call))
            kernels.append(store, k, v, **where)
        reference.append(twin, k, v, **where)
        for mine, theirs in ((store.k, twin.k), (store.v, twin.v)):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        begin = end
