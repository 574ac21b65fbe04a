"""Prefill where sinks hold the keys of KeyDiff, chosen on the device; one launch attends in all groups.

Nothing waits for the device, and the number of launches is the same at every length.
"""

import torch
import triton
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.kernels.triton.append import append
from moa.kernels.triton.common import on_device, require_supported
from moa.kernels.triton.prefill import Held, launch_prefill
from moa.kernels.triton.selection import exits_kernel, keep_kernel, put_kernel, scores_kernel, table_kernel
from moa.plans.span import BLOCK

AT_ONCE = 256
"""Candidates that a program of `table_kernel` looks at in one step."""


def prefill(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, sinks: Sinks, softmax: Softmax
) -> Tensor:
    """Return the attention of the new tokens, and append them to the store, as `moa.kernels.keydiff.prefill` does.

    The sinks are those that the first new tokens see; `Sinks.settle` records afterwards what they have become.
    """
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    groups, dim = k.shape[1:]
    device, sequences, moving = q.device, len(batch.past), len(sinks.groups)
    groups_of, places = sinks.on_device
    pairs, most = sequences * moving, sinks.score.shape[-1] - BLOCK
    room = most + max(run.slots for run in store.runs) + -(-batch.max_seqlen // BLOCK) * BLOCK + BLOCK
    lines = (batch.max_seqlen + BLOCK - 2) // BLOCK + 1
    found = torch.empty((pairs, room), dtype=torch.float32, device=device)
    exits = torch.empty((pairs, room), dtype=torch.int32, device=device)
    table = torch.empty((pairs, lines, most), dtype=torch.int32, device=device)
    kept = [torch.empty((pairs, most + BLOCK, dim), dtype=x.dtype, device=device) for x in (store.k, store.v)]
    marks = [torch.empty((pairs, most + BLOCK), dtype=x.dtype, device=device) for x in (sinks.score, sinks.position)]
    where = (groups_of, seen.first, seen.sink, store.base, store.capacity, batch.cu_seqlens, batch.past)
    sizes = seen.first.shape[1], groups, moving
    state, width = (sinks.score, sinks.position), triton.next_power_of_2(dim)
    with on_device(q):
        scores_kernel[(room // BLOCK, pairs)](
            k, store.k, found, *state, *where, *sizes, most, room, *k.stride()[:2], D=dim,
            WIDTH=triton.next_power_of_2(dim // 2), num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        exits_kernel[(room // BLOCK, pairs)](found, exits, *where, *sizes, room, num_warps=4)
        table_kernel[(lines, pairs)](exits, table, *where, *sizes, most, room, lines, AT_ONCE=AT_ONCE, num_warps=4)
        held = Held(table, places, moving, most, lines)
        launch_prefill(q, k, v, out, batch=batch, seen=seen, store=store, softmax=softmax, held=held)
        keep_kernel[(pairs,)](
            k, v, store.k, store.v, *kept, found, exits, table, *state, *marks, *where, *sizes, most, room, lines,
            *k.stride()[:2], *v.stride()[:2], D=dim, WIDTH=width, num_warps=4,
        )  # fmt: skip
        append(store, k, v, batch=batch, seen=seen)
        put_kernel[(most // BLOCK + 1, pairs)](
            store.k, store.v, *kept, *state, *marks, *where, *sizes, most, D=dim, WIDTH=width, num_warps=4
        )  # fmt: skip
    return out
