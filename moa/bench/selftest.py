"""Compare a back-end with the reference on a small random case, which takes a second, for `moa doctor`."""

import numpy as np
import torch
from torch import Tensor

from moa.kernels.backend import Backend, load
from moa.kernels.call import Packed, Visibility
from moa.kernels.registry import REFERENCE
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities
from moa.plans.span import BLOCK, Reach, linear

REACH = Reach([(64, 64, 0), (64, 150, 0), (128, 0, 100)], [linear] * 3)
HEADS, SIZE = 6, 64
SOFTMAX = Softmax(SIZE**-0.5)
LENGTHS = (400, 250)
"""Tokens of each sequence in the prefill; a decode step follows."""


def deviation(backend: Backend, device: torch.device | str = "cpu") -> float:
    """Return the largest difference to the reference, over a ragged prefill and a decode step from its cache.

    Args:
        backend: The back-end to test.
        device: Where its tensors lie; the reference's lie on the CPU.

    Returns:
        The difference of float32 outputs, whose values are about 0.1 in size; inf where an output is not finite.
    """
    expected, found = _run(load(REFERENCE.name), "cpu"), _run(backend, device)
    return float(torch.nan_to_num((found.cpu() - expected).abs(), nan=torch.inf).max())


@torch.inference_mode()
def _run(backend: Backend, device: torch.device | str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    first = REACH.first(np.arange(max(LENGTHS) // BLOCK + 1))
    seen = Visibility(*(torch.from_numpy(x.astype(np.int32)).to(device) for x in (first, REACH.sink)))
    store = allocate(capacities(REACH, np.add(LENGTHS, 1)), SIZE, torch.float32, device)
    past, outs = np.zeros(len(LENGTHS), np.int64), []
    for new in (np.array(LENGTHS), np.ones(len(LENGTHS), np.int64)):
        q, k, v = (
            torch.randn(int(new.sum()), heads, SIZE, generator=generator).to(device)
            for heads in (HEADS, len(REACH), len(REACH))
        )
        cu_seqlens = torch.tensor([0, *np.cumsum(new)], dtype=torch.int32, device=device)
        batch = Packed(cu_seqlens, torch.from_numpy(past).to(device), int(new.max()), nonempty=True)
        if not past.any():
            outs.append(backend.attend(q, k, v, batch=batch, seen=seen, softmax=SOFTMAX))
            backend.append(store, k, v, batch=batch, seen=seen)
        else:
            outs.append(backend.decode(q, k, v, batch=batch, seen=seen, store=store, softmax=SOFTMAX))
        past = past + new
    return torch.cat(outs)
