"""Sinks of other keys over the Triton kernels: the reference's results, and its sinks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from moa.kernels.backend import load
from moa.kernels.call import Packed
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities

TEXTS = [238, 0, 250]
STEPS = 20


def test_prefill_and_steps_agree_with_the_reference(kit: SimpleNamespace) -> None:
    generator, rules = (
        torch.Generator().manual_seed(0),
        kit.Rules(np.array([64, 128]), np.array([128, 300]), np.array([0, 0])),
    )
    room = capacities(rules.reach, np.array(TEXTS) + STEPS)
    counts = [sum(TEXTS), *[len(TEXTS)] * STEPS]
    tokens = [[torch.randn(n, heads, 16, generator=generator) for heads in (4, 2, 2)] for n in counts]
    found, sinks_of = [], []
    for name in ("reference", "triton"):
        backend, out, past = load(name), [], torch.zeros(len(TEXTS), dtype=torch.int64)
        dtype = torch.float64 if name == "reference" else torch.float32
        store = allocate(room, 16, dtype, "cpu")
        sinks = Sinks(rules.sink, ("keydiff",) * 2, rules.first_at, len(TEXTS), torch.device("cpu"))
        for (q, k, v), counted in zip(tokens, [TEXTS, *[[1] * len(TEXTS)] * STEPS], strict=True):
            cu_seqlens = torch.tensor([0, *np.cumsum(counted)], dtype=torch.int32)
            out.append(
                attend(
                    *(x.to(dtype) for x in (q, k, v)), batch=Packed(cu_seqlens, past, max(counted), True),
                    seen=rules.seen(511), store=store, sinks=sinks, grown=lambda store=store: store,
                    softmax=Softmax(0.3), backend=backend,
                )
            )  # fmt: skip
            past = past + torch.tensor(counted)
        found.append(torch.cat(out).double())
        sinks_of.append(sinks)
    assert torch.equal(sinks_of[0].folded, sinks_of[1].folded)
    assert torch.equal(sinks_of[0].position, sinks_of[1].position)
    whole = kit.Text(*([torch.cat(part)] for part in zip(*tokens, strict=True)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=kit.rounding(whole, 0.3, torch.float32))


@pytest.mark.parametrize(("heads", "dtype", "modified"), [(1, torch.bfloat16, False), (3, torch.float32, True)])
def test_chunks_agree_with_the_reference(kit: SimpleNamespace, heads: int, dtype: torch.dtype, modified: bool) -> None:
    """A tile of rows lies in up to three query blocks, whose sinks differ; one group's sink holds the first keys."""
    rules = kit.Rules(np.array([128, 64, 64]), np.array([192, 130, 128]), np.array([0, 0, 60]))
    holds, whole, scale = ("keydiff", "first", "keydiff"), kit.text([330, 260], 3 * heads, 3, 16, 1), 0.3
    for xs in (whole.q, whole.k, whole.v):
        xs[:] = [x.to(dtype).double() for x in xs]
    logits = torch.linspace(-1, 3, 3 * heads) if modified else None
    softmax, ends, found = Softmax(scale, 2.0 if modified else None, logits), [[101, 1], [166, 259], [330, 260]], []
    for name in ("reference", "triton"):
        wide = torch.float64 if name == "reference" else dtype
        store = allocate(capacities(rules.reach, np.array([330, 260])), 16, wide, "cpu")
        sinks, out, begin = Sinks(rules.sink, holds, rules.first_at, 2, torch.device("cpu")), [], [0, 0]
        for end in ends:
            out.append(
                attend(
                    **whole.new(begin, end, wide), seen=rules.seen(511), store=store, sinks=sinks,
                    grown=lambda store=store: store, softmax=softmax, backend=load(name),
                ).double()
            )  # fmt: skip
            begin = end
        found.append((torch.cat(out), sinks))
    (exact, theirs), (mine, ours) = found
    assert torch.equal(ours.position, theirs.position)
    largest = max(float(v.abs().max()) for v in whole.v)  # weights and results are rounded to dtype, sums to float32
    bound = torch.finfo(dtype).eps * largest + kit.rounding(whole, scale, torch.float32)
    torch.testing.assert_close(mine, exact, rtol=0, atol=bound)
