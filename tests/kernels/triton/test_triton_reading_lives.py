"""Lives of caches whose rows choose pages: back-end `triton` gives the outputs and summaries of the reference."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moa.kernels.backend import load
from moa.kernels.call import Packed
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities, select

pytestmark = pytest.mark.usefixtures("nothing_is_zero_by_luck")
CALLS = [[250, 130, 0], [1, 1, 1], [1, 17, 6], [5, 0, 3], [1, 1, 1]]
"""New tokens of each sequence: all read; some read beside others that do not; drafts; none."""


def live(name: str, rules: Any, reading: Any, texts: Any, holds: str) -> tuple[list[Tensor], Tensor]:
    """Outputs of each call, and the summaries at the end; a crop and a reordering lie between the last two calls."""
    room = np.full(3, 320)
    store = allocate(capacities(rules.reach, room), 16, torch.float32, "cpu", summaries=True)
    sinks, found, past = None, [], np.zeros(3, np.int64)
    if holds != "first":
        sinks = Sinks(rules.sink, (holds, "first"), rules.first_at, 3, torch.device("cpu"))
    backend, order = load(name), [0, 1, 2]
    for i, call in enumerate(CALLS):
        if i == len(CALLS) - 1:
            past -= np.minimum(past, [9, 20, 5])
            if sinks is not None:
                sinks.take_back(store, rules.first_at(past))
            order = [1, 0, 0]
            store, past = select(store, torch.tensor(order)), past[order]
            sinks = sinks.select(torch.tensor(order)) if sinks is not None else None
        q, k, v = (
            torch.cat([x[s][b : b + n] for s, b, n in zip(order, past, call, strict=True)]).float()
            for x in (texts.q, texts.k, texts.v)
        )
        offsets = torch.tensor([0, *np.cumsum(call)], dtype=torch.int32)
        found.append(attend(
            q, k, v, batch=Packed(offsets, torch.from_numpy(past.copy()), max(call), min(call) > 0),
            seen=rules.seen(320), softmax=Softmax(0.3), backend=backend, reading=reading, store=store, sinks=sinks,
            grown=lambda store=store: store,
        ))  # fmt: skip
        past = past + call
    assert store.summaries is not None
    return found, store.summaries


@pytest.mark.parametrize("holds", ["first", "keydiff"])
def test_all_calls_give_what_the_reference_gives(kit: Any, paged: Any, holds: str) -> None:
    rules = kit.Rules(np.array([64, 64]), np.array([192, 10**6]), np.array([0, 0]))
    reading = paged.reading((150, 64), (100, 16))
    texts = kit.text([320] * 3, 6, 2, 16, 0)
    found, wanted = (live(name, rules, reading, texts, holds) for name in ("triton", "reference"))
    for mine, theirs in zip(found[0], wanted[0], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    assert torch.equal(found[1], wanted[1])
