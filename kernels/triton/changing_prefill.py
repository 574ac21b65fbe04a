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
from moa.kernels.triton.changing_decode import Copies
from moa.kernels.triton.common import on_device, require_supported
from moa.kernels.triton.moves import keep_kernel
from moa.kernels.triton.prefill import Held, launch_prefill
from moa.kernels.triton.selection import exits_kernel, scores_kernel, table_kernel
from moa.kernels.triton.tiles import scores_warps
from moa.plans.span import BLOCK

AT_ONCE = 256
"""Candidates that a program of `table_kernel` looks at in one step."""


def prefill(
    q: Tensor, k: Tensor, v: Tensor, *, batch: Packed, seen: Visibility, store: Store, sinks: Sinks, softmax: Softmax
) -> Tensor:
    """Return the attention of the new tokens, and append them to the store, as `moa.kernels.keydiff.prefill` does.

    The sinks are those that the first new tokens see, or lack the block that these tokens are the first not to see.
    """
    require_supported(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    (groups, dim), device, moving = k.shape[1:], q.device, sinks.moving
    pairs, most = len(batch.past) * moving, sinks.score.shape[-1] - BLOCK
    room = most + max(run.slots for run in store.runs) + -(-batch.max_seqlen // BLOCK) * BLOCK + BLOCK
    lines = (batch.max_seqlen + BLOCK - 2) // BLOCK + 2
    found = torch.empty((pairs, room), dtype=torch.float32, device=device)
    exits = torch.empty((pairs, room), dtype=torch.int32, device=device)
    table = torch.empty((pairs, lines, most), dtype=torch.int32, device=device)
    copies, width = Copies.of(store, sinks), triton.next_power_of_2(dim)
    where = (
        sinks.groups_on_device, sinks.folded, *seen, store.base, store.capacity, batch.cu_seqlens, batch.past,
        seen.first.shape[1], groups, moving,
    )  # fmt: skip
    with on_device(q):
        scores_kernel[(room // BLOCK, pairs)](
            k, store.k, found, sinks.score, sinks.position, *where, most, room, *k.stride()[:2], D=dim,
            WIDTH=triton.next_power_of_2(dim // 2), num_warps=scores_warps(dim),
        )  # fmt: skip
        exits_kernel[(room // BLOCK, pairs)](found, exits, *where, room, num_warps=4)
        table_kernel[(lines, pairs)](exits, table, *where, most, room, lines, AT_ONCE=AT_ONCE, num_warps=4)
        held = Held(table, sinks.places, sinks.folded, moving, most, lines)
        launch_prefill(q, k, v, out, batch=batch, seen=seen, store=store, softmax=softmax, held=held)
        keep_kernel[(pairs,)](
            k, v, store.k, store.v, copies.k, copies.v, found, exits, table, sinks.position, *copies[2:], *where,
            most, room, lines, *k.stride()[:2], *v.stride()[:2], D=dim, WIDTH=width, num_warps=4,
        )  # fmt: skip
        append(store, k, v, batch=batch, seen=seen)
        copies.put(store, sinks, seen)
    return out
