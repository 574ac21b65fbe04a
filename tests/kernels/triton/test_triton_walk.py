"""Sinks of other keys over the Triton kernels: the reference's results, and its sinks."""

from types import SimpleNamespace

import numpy as np
import torch

from moa.kernels.backend import load
from moa.kernels.call import Packed, Visibility
from moa.kernels.dispatch import attend
from moa.kernels.sinks import Sinks
from moa.kernels.store import allocate, capacities
from moa.plans.span import first_block

NUMBERS = np.array([64, 128]), np.array([128, 300]), np.zeros(2, np.int64)
TEXTS = [238, 0, 250]
STEPS = 20


def edges(at: np.ndarray) -> np.ndarray:
    return first_block(*(x[:, None] for x in NUMBERS), np.asarray(at) // 64).T


def test_prefill_and_steps_agree_with_the_reference(kit: SimpleNamespace) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = np.array(TEXTS) + STEPS
    first = torch.from_numpy(edges(64 * np.arange(8)).T.astype(np.int32).copy())
    rules = {"first": first, "sink": torch.from_numpy(NUMBERS[0].astype(np.int32))}
    counts = [sum(TEXTS), *[len(TEXTS)] * STEPS]
    tokens = [[torch.randn(n, heads, 16, generator=generator) for heads in (4, 2, 2)] for n in counts]
    found, held = [], []
    for name in ("reference", "triton"):
        backend, out, lengths = load(name), [], torch.zeros(len(TEXTS), dtype=torch.int64)
        dtype = torch.float64 if name == "reference" else torch.float32
        store = allocate(capacities(*NUMBERS, ends), 16, dtype, "cpu")
        sinks = Sinks(NUMBERS[0], np.array([True, True]), len(TEXTS), torch.device("cpu"))
        for (q, k, v), counted in zip(tokens, [TEXTS, *[[1] * len(TEXTS)] * STEPS], strict=True):
            cu_seqlens = torch.tensor([0, *np.cumsum(counted)], dtype=torch.int32)
            out.append(
                attend(
                    *(x.to(dtype) for x in (q, k, v)), batch=Packed(cu_seqlens, lengths, max(counted), True),
                    seen=Visibility(**rules, first_at=edges), store=store, sinks=sinks, grown=lambda store=store: store,
                    scale=0.3, backend=backend,
                )
            )  # fmt: skip
            lengths = lengths + torch.tensor(counted)
        found.append(torch.cat(out).double())
        held.append(sinks)
    assert (held[0].folded == held[1].folded).all()
    assert torch.equal(held[0]._position, held[1]._position)
    whole = kit.Text(*([torch.cat(part)] for part in zip(*tokens, strict=True)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=kit.rounding(whole, 0.3, torch.float32))
