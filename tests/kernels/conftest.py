"""Shared builders: random texts, rules, ragged stores with poisoned slots, and an oracle that shares no code with them.

Tests take them through the fixture `kit`, since test folders are not packages.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from moa.kernels.backend import load
from moa.kernels.call import Packed, Visibility
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, allocate, capacities
from moa.plans.span import Reach, first_block, linear

BLOCK = 64
BIAS = {torch.float16: 120.0, torch.bfloat16: 32.0}
"""Of half of the numbers in queries and keys, as Qwen2 has biases. For a size of 16, q·k is then about 115,200,
and about 8,192, where bfloat16 tells apart 128 numbers from one power of two to the next."""


@dataclass
class Rules:
    """One layer's rules, [kv_heads] each."""

    sink: np.ndarray
    alpha: np.ndarray
    beta256: np.ndarray

    @property
    def reach(self) -> Reach:
        """As the code takes them."""
        return Reach(np.column_stack([self.sink, self.alpha, self.beta256]), [linear] * len(self.sink))

    def seen(self, length: int) -> Visibility:
        """What rows see, for texts of up to `length` tokens."""
        blocks = np.arange(length // BLOCK + 1)
        table = first_block(self.sink[:, None], self.alpha[:, None], self.beta256[:, None], blocks)
        return Visibility(torch.from_numpy(table).int(), torch.from_numpy(self.sink).int())

    def first_at(self, at: np.ndarray) -> np.ndarray:
        """First blocks besides the sink that rows at positions [n] see: [n, kv_heads]."""
        return first_block(*(x[:, None] for x in (self.sink, self.alpha, self.beta256)), np.asarray(at) // BLOCK).T


@dataclass
class Text:
    """Whole texts of several sequences, float64: q [query_heads], k and v [kv_heads], each list entry [n, heads, D]."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]

    def new(self, begin: list[int], end: list[int], dtype: torch.dtype = torch.float64) -> dict[str, Any]:
        """`q`, `k` and `v`, tokens begin … end of each sequence, and the `batch` that says how they are packed."""
        cut = {n: torch.cat([x[b:e] for x, b, e in zip(getattr(self, n), begin, end, strict=True)]).to(dtype)
               for n in "qkv"}  # fmt: skip
        counts = np.subtract(end, begin)
        cu_seqlens = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32)
        past = torch.tensor(begin, dtype=torch.int64)
        return cut | {"batch": Packed(cu_seqlens, past, int(counts.max()), bool(counts.all()))}


def text(lengths: list[int], heads: int, groups: int, size: int, seed: int) -> Text:
    generator = torch.Generator().manual_seed(seed)

    def random(count: int) -> list[Tensor]:
        return [torch.randn(n, count, size, generator=generator, dtype=torch.float64) for n in lengths]

    return Text(random(heads), random(groups), random(groups))


def sees(rules: Rules, group: int, row: int, key: int) -> bool:
    """The design's definition, read literally in Python integers."""
    sink, alpha, beta = (int(x[group]) for x in (rules.sink, rules.alpha, rules.beta256))
    block = row // BLOCK
    n = BLOCK * block + 1
    window256 = max(256 * alpha + beta * n - 256 * sink, 256 * 64)
    first = max(sink // BLOCK, (256 * n - window256) // (256 * 64))
    return key <= row and (key // BLOCK < sink // BLOCK or first <= key // BLOCK)


def oracle(
    whole: Text, rules: Rules, scale: float, cap: float | None = None, sink_logits: Tensor | None = None
) -> list[Tensor]:
    """Dense masked softmax over each whole text, [n, query_heads, D]; learned sinks are a key whose value is 0."""
    out = []
    for q, k, v in zip(whole.q, whole.k, whole.v, strict=True):
        heads = q.shape[1] // k.shape[1]
        result = torch.empty_like(q)
        for group in range(k.shape[1]):
            blocks = -(-len(q) // BLOCK) or 1  # within a pair of blocks, causality alone decides
            grid = [[j <= i and sees(rules, group, BLOCK * i, BLOCK * j) for j in range(blocks)] for i in range(blocks)]
            mask = torch.tensor(grid).repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: len(q), : len(q)].tril()
            for head in range(group * heads, (group + 1) * heads):
                scores, values = q[:, head] @ k[:, group].T * scale, v[:, group]
                if cap is not None:
                    scores = torch.tanh(scores / cap) * cap
                scores = scores.masked_fill(~mask, -torch.inf)
                if sink_logits is not None:
                    sunk = sink_logits[head].double()
                    scores = torch.cat([scores, sunk.expand(len(q), 1)], 1)
                    values = torch.cat([values, torch.zeros_like(values[:1])])
                result[:, head] = scores.softmax(-1) @ values
        out.append(result)
    return out


def store_of(whole: Text, rules: Rules, lengths: list[int], *, spare: list[list[int]] | int = 0,
             fill: float = float("nan"), dtype: torch.dtype = torch.float64, room: int = 64) -> Store:  # fmt: skip
    """A store holding `lengths` tokens of each text, built without `append`: every slot no later row wants is `fill`.

    Args:
        whole: The texts.
        rules: The rules.
        lengths: Tokens held of each sequence.
        spare: Extra blocks per slab, a number or [sequences][groups].
        fill: What all other slots hold.
        dtype: Of keys and values.
        room: Tokens that may be appended without growing.
    """
    capacity = capacities(rules.reach, np.add(lengths, room))
    store = allocate(capacity + BLOCK * np.asarray(spare), whole.k[0].shape[-1], dtype, "cpu")
    store.k.fill_(fill)
    store.v.fill_(fill)
    for s, length in enumerate(lengths):
        for g in range(whole.k[s].shape[1]):
            sinks, blocks = int(rules.sink[g]) // BLOCK, int(store.capacity[s, g]) // BLOCK
            for j in range(-(-length // BLOCK)):
                if sees(rules, g, max(length, BLOCK * j), BLOCK * j):
                    at = int(store.base[s, g]) + BLOCK * (j if j < sinks else sinks + (j - sinks) % (blocks - sinks))
                    held = slice(BLOCK * j, min(BLOCK * (j + 1), length))
                    count = held.stop - held.start
                    store.k[at : at + count] = whole.k[s][held, g].to(dtype)
                    store.v[at : at + count] = whole.v[s][held, g].to(dtype)
    return store


def rounding(whole: Text, scale: float, dtype: torch.dtype) -> float:
    """Bound on the error of attention with inputs and weights in `dtype`, sums in at least float32.

    With u the unit roundoff of dtype, a that of the sums, n keys of size D, and s the largest scale * sum |q||k|: a
    score is off by at most (4u + Da)s (q and k rounded, q scaled, score rounded; the sum), a softmax weight by twice
    that and 2u + na relatively (exp, division, the total), and the product with V adds 2u + na.
    """
    unit, sums = torch.finfo(dtype).eps / 2, min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) / 2
    error = 0.0
    for q, k, v in zip(whole.q, whole.k, whole.v, strict=True):
        if len(q):
            largest = float(scale * q.abs().amax((0, 1)) @ k.abs().amax((0, 1)))
            score = (4 * unit + q.shape[-1] * sums) * largest
            error = max(error, float(v.abs().max()) * (2 * score + 4 * unit + 2 * len(k) * sums))
    return error


def biased(lengths: list[int], heads: int, groups: int, size: int, dtype: torch.dtype) -> Text:
    """Texts whose scores are large and differ by little, rounded to `dtype`, as float64."""
    whole = text(lengths, heads, groups, size, 0)
    for x in (*whole.q, *whole.k):
        x[..., : size // 2] = BIAS[dtype]
        x[..., size // 2 :] *= 2
    for name in "qkv":
        setattr(whole, name, [x.to(dtype).double() for x in getattr(whole, name)])
    return whole


def half_rounding(whole: Text, scale: float, dtype: torch.dtype, cap: float = 0.0) -> float:
    """Bound on the error of attention whose inputs are exact, scores and sums in float32, weights in `dtype`.

    With u the unit roundoff of dtype, a that of float32, D the size and s the largest scale * sum |q||k|: a score is
    off by (D + 2) a s, and by u**2 s where it is the sum of two numbers of `dtype`; a weight by twice that, and by u
    (its rounding) and n a (its sum); the output by u more (its rounding), and by half of the smallest subnormal number.
    A soft-cap takes a score that is off to one that is off by no more, and its own rounding, a few a of the cap.
    """
    unit, sums, error = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps / 2, 0.0
    for q, k, v in zip(whole.q, whole.k, whole.v, strict=True):
        largest = float(scale * q.abs().amax((0, 1)) @ k.abs().amax((0, 1)))
        score = ((q.shape[-1] + 2) * sums + unit**2) * largest + 8 * sums * cap
        error = max(error, float(v.abs().max()) * (np.expm1(2 * score) + 2 * unit + 2 * len(k) * sums))
    return error + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2


def texts_of_ties(lengths: list[int], groups: int, size: int, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Keys [n, groups, size] per text, of `dtype`; groups but the first have few keys over and over, so scores tie."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for n in lengths:
        k = torch.randn(n, groups, size, generator=generator)
        few = torch.randn(24, groups - 1, size, generator=generator)
        k[:, 1:] = few[torch.randint(24, (n,), generator=generator)]
        k[128:192] = k[:64]  # and a whole block again
        found.append(k.to(dtype))
    return found


def sinks_after(
    name: str, keys: list[Tensor], ends: list[list[int]], rules: Rules, fill: float = float("nan")
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """What keydiff sinks hold after texts went through calls of a back-end.

    Args:
        name: Of the back-end.
        keys: Of each text [n, groups, size].
        ends: Per call, each text's length after it. Where a text's next call ends lower, the last tokens of this one
            are others than the text's, and are taken back.
        rules: Of the groups.
        fill: What memory holds that was never written.

    Returns:
        Positions, scores, keys and values per (text, group): [sink], and [sink, size].
    """
    backend, groups, size = load(name), keys[0].shape[1], keys[0].shape[2]
    dtype = keys[0].dtype
    store = allocate(capacities(rules.reach, np.max(ends, 0)), size, dtype, "cpu")
    store.k.fill_(fill), store.v.fill_(fill)
    seen, past = rules.seen(int(np.max(ends))), np.zeros(len(keys), np.int64)
    sinks = Sinks(rules.sink, ("keydiff",) * groups, rules.first_at, len(keys), torch.device("cpu"))
    for i, end in enumerate(ends):
        back = np.minimum(end, ends[i + 1] if i + 1 < len(ends) else end)
        new = [k[b:e].clone() for k, b, e in zip(keys, past, end, strict=True)]
        for x, b, left in zip(new, past, back, strict=True):
            x[left - b :] = -x[left - b :]
        k = torch.cat(new)
        new, cu_seqlens = end - past, torch.tensor([0, *np.cumsum(end - past)], dtype=torch.int32)
        out = attend(
            k.repeat_interleave(3, 1), k, 2 * k, softmax=Softmax(size**-0.5), backend=backend, store=store, sinks=sinks,
            batch=Packed(cu_seqlens, torch.from_numpy(past), int(new.max()), bool((new > 0).all())),
            seen=seen, grown=lambda: store,
        )  # fmt: skip
        assert out.isfinite().all()
        past = back
        sinks.take_back(store, rules.first_at(past))
    sinks.advance(store, rules.first_at(np.maximum(past - 1, 0)))
    found = []
    for s in range(len(keys)):
        for g in range(groups):
            at = slice(int(store.base[s, g]), int(store.base[s, g]) + int(rules.sink[g]))
            mine = sinks.position[s, g, : rules.sink[g]], sinks.score[s, g, : rules.sink[g]]
            found.append((*mine, store.k[at].clone(), store.v[at].clone()))
    return found


@st.composite
def rule_sets(draw: st.DrawFn, groups: int) -> Rules:
    """Random rules; groups often share one."""
    one = st.tuples(st.integers(0, 3), st.integers(-100, 500), st.one_of(st.just(0), st.just(256), st.integers(0, 256)))
    pool = draw(st.lists(one, min_size=1, max_size=groups))
    chosen = draw(st.lists(st.sampled_from(pool), min_size=groups, max_size=groups))
    sink, alpha, beta = np.array(chosen, np.int64).T
    return Rules(64 * sink, alpha, beta)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The builders of this file."""
    return SimpleNamespace(
        Rules=Rules,
        Text=Text,
        text=text,
        sees=sees,
        oracle=oracle,
        store_of=store_of,
        rounding=rounding,
        biased=biased,
        half_rounding=half_rounding,
        rule_sets=rule_sets,
        texts_of_ties=texts_of_ties,
        sinks_after=sinks_after,
    )
