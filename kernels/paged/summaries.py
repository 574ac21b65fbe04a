"""Summarise pages of keys in few bytes, in which a row finds out which pages it should fetch.

A summary holds the mean of a page's keys over the slow channels, 4 bits each with one scale, and the length of the
vector of their standard deviations, the *spread*. Sizes are those of `moa.plans.reading`.

A block of 64 keys has five *quads* of four summaries: that of its coarse pages, then those of the fine pages inside
each coarse one. A quad of head size D has D + 16 bytes: means [D/4, 4 pages], scales [4] and spreads [4], both as
bfloat16. Byte i of a mean holds two signed numbers, the channel D/4 + i in its low bits and its rotary partner
3D/4 + i in its high bits.

All back-ends write the same bytes: arithmetic is float32, without fused products, and sums have one order.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from moa.kernels.call import Packed, Visibility
from moa.kernels.store import Store, find_tokens, slots
from moa.plans.reading import COARSE, FINE, INSIDE, slow_channels, summary_bytes
from moa.plans.span import BLOCK

QUADS = 1 + BLOCK // COARSE
"""Quads of a block."""
STEPS = 7
"""The largest number of 4 bits; the least is -7."""
LEAST = 2.0**-60
"""The smallest scale, so that a mean of zeros divides by no zero."""


def quad_bytes(head_size: int) -> int:
    """Return the bytes of four summaries."""
    return INSIDE * summary_bytes(head_size)


def update(store: Store, *, batch: Packed, seen: Visibility) -> None:
    """Write the summaries of the pages that the batch's tokens have filled; their keys are in the store already."""
    assert store.summaries is not None
    sequence, position = find_tokens(batch.cu_seqlens, batch.past, int(batch.cu_seqlens[-1]))
    newest = (batch.past + batch.cu_seqlens.diff() - 1) // BLOCK
    ring = store.capacity // BLOCK - seen.sink // BLOCK
    quads = store.summaries.unflatten(1, (QUADS, -1))
    for page in (COARSE, FINE):
        full = position % page == page - 1
        at, owner = position[full, None], sequence[full]
        last = slots(at, seen.sink, store.base[owner], store.capacity[owner])
        kept = (at < seen.sink) | (at // BLOCK > newest[owner, None] - ring[owner])  # as `append` keeps tokens
        last = last[kept]
        mean, scale, spread = summarise(store.k[last[:, None] + torch.arange(1 - page, 1, device=last.device)])
        block, inside = last // BLOCK, last % BLOCK
        quad, lane = (0, inside // COARSE) if page == COARSE else (1 + inside // COARSE, inside % COARSE // FINE)
        _parts(quads)[0][block, quad, :, lane] = mean
        _parts(quads)[1][block, quad, lane] = scale
        _parts(quads)[2][block, quad, lane] = spread


def of_text(keys: Tensor) -> Tensor:
    """Return the summaries of a text's keys [n, D], as a store has them: uint8 [blocks, bytes].

    Those of pages that the text does not fill mean nothing.
    """
    keys = pad(keys, (0, 0, 0, -len(keys) % BLOCK))
    blocks = len(keys) // BLOCK
    quads = keys.new_empty((blocks, QUADS, quad_bytes(keys.shape[1])), dtype=torch.uint8)
    for page, where in ((COARSE, slice(0, 1)), (FINE, slice(1, None))):
        mean, scale, spread = (x.unflatten(0, (blocks, -1, INSIDE)) for x in summarise(keys.unflatten(0, (-1, page))))
        means, *numbers = _parts(quads[:, where])
        means.copy_(mean.mT)
        for place, number in zip(numbers, (scale, spread), strict=True):
            place.copy_(number)
    return quads.flatten(1)


def summarise(keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the summaries of pages of keys [pages, 4 or 16, D].

    Returns:
        Means uint8 [pages, D/4] in 4 bits; scales and spreads, bfloat16 [pages].
    """
    page, size = keys.shape[1:]
    x = keys[..., torch.from_numpy(slow_channels(size)).to(keys.device)].float()
    mean = _sum_of_keys(x) * (1 / page)
    spread = (_sum_of_channels(_sum_of_keys((x - mean[:, None]).square())) * (1 / page)).sqrt()
    scale = (mean.abs().amax(-1) / STEPS).clamp(min=LEAST).bfloat16()
    number = (mean / scale.float()[:, None]).round().clamp(-STEPS, STEPS).to(torch.int8)
    low, high = number.chunk(2, -1)
    return (low & 15 | high << 4).view(torch.uint8), scale, spread.bfloat16()


def unpack(quads: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the means [..., 4 pages, D/2] of the slow channels, and the spreads [..., 4 pages], of quads in bytes."""
    packed, scale, spread = _parts(quads)
    signed = packed.view(torch.int8).mT
    number = torch.cat([signed << 4 >> 4, signed >> 4], -1)
    return number * scale.to(dtype)[..., None], spread.to(dtype)


def _parts(quads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return views of quads [..., D + 16]: the means' bytes [..., D/4, 4], scales and spreads [..., 4]."""
    size = quads.shape[-1] - 4 * INSIDE
    numbers = quads[..., size:].view(torch.bfloat16)
    return quads[..., :size].unflatten(-1, (-1, INSIDE)), numbers[..., :INSIDE], numbers[..., INSIDE:]


def _sum_of_keys(x: Tensor) -> Tensor:
    """Return the sum over the keys of pages [pages, 4 or 16, C]: of each four in their order, then of the sums."""
    x = x.unflatten(1, (-1, FINE))
    x = x[:, :, 0] + x[:, :, 1] + x[:, :, 2] + x[:, :, 3]
    return x[:, 0] if x.shape[1] == 1 else _sum_of_keys(x)


def _sum_of_channels(x: Tensor) -> Tensor:
    """Return the sum over channels [pages, C]: the second half is added to the first while both are equal."""
    while x.shape[1] % 2 == 0:
        x = x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :]
    total = x[:, 0]
    for channel in x.unbind(1)[1:]:
        total = total + channel
    return total
