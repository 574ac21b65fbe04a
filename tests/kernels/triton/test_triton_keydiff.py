"""Sinks of other keys over the Triton kernels: the reference's results, and its sinks."""

from types import SimpleNamespace

import numpy as np
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
    assert (sinks_of[0].folded == sinks_of[1].folded).all()
    assert torch.equal(sinks_of[0]._position, sinks_of[1]._position)
    whole = kit.Text(*([torch.cat(part)] for part in zip(*tokens, strict=True)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=kit.rounding(whole, 0.3, torch.float32))
