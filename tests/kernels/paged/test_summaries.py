"""Summaries of pages: the bytes that the definition gives, however a text was cut into calls."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.kernels import backend
from moa.kernels.paged.summaries import QUADS, quad_bytes, summarise, unpack, update
from moa.kernels.store import allocate, capacities
from moa.plans.reading import summary_bytes


@pytest.mark.parametrize("size", [16, 64, 80, 120, 256])
@pytest.mark.parametrize("page", [4, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_numbers_of_a_page(paged, size, page, dtype):
    keys = (3 * torch.randn(5, page, size, dtype=torch.float64)).to(dtype)
    keys[1, :, : size // 2] += 40
    keys[2] = 0
    keys[3] *= 2.0**-8
    mean, scale, spread = summarise(keys)
    for i in range(5):
        numbers, one, wide = paged.summary(keys[i].float().numpy())
        assert (scale[i].item(), spread[i].item()) == (one, wide)
        packed = [(a & 15) | (b & 15) << 4 for a, b in zip(*np.split(np.array(numbers), 2), strict=True)]
        assert mean[i].tolist() == packed


def test_what_is_unpacked_is_near_the_mean(paged):
    """Within half a step of 4 bits and bfloat16's rounding of the scale; and the spread is that of the keys."""
    keys = torch.randn(4, 16, 64)
    mean, scale, spread = summarise(keys)
    quad = torch.zeros(quad_bytes(64), dtype=torch.uint8)
    quad[:64].view(16, 4)[:] = mean.T
    quad[64:].view(torch.bfloat16)[:] = torch.cat([scale, spread])
    found, wide = unpack(quad, torch.float64)
    slow = torch.cat([keys[..., 16:32], keys[..., 48:]], -1)
    bound = slow.mean(1).abs().amax(1, keepdim=True) * (1 / 14 + 2**-8)
    assert ((found - slow.mean(1)).abs() <= bound).all()
    torch.testing.assert_close(wide, slow.var(1, correction=0).sum(1).sqrt().double(), rtol=2**-8, atol=0)


def test_bytes_are_those_of_the_plan():
    assert quad_bytes(64) == 4 * summary_bytes(64) == 80


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_way_of_cutting_a_text_gives_the_same_bytes(kit, paged, data):
    """Ragged lengths, rings that wrap, calls without new tokens; full pages only."""
    rules = data.draw(kit.rule_sets(groups=2))
    lengths = data.draw(st.lists(st.integers(1, 400), min_size=2, max_size=2))
    whole, seen, run = kit.text(lengths, 2, 2, 8, 0), rules.seen(400), backend.load("reference")
    store = allocate(capacities(rules.reach, np.add(lengths, 64)), 8, torch.float64, "cpu")
    store.summaries = torch.full((len(store.k) // 64, QUADS * quad_bytes(8)), 255, dtype=torch.uint8)
    done = [0, 0]
    while done != lengths:
        steps = [data.draw(st.sampled_from([400, 64, 250, 33, 16, 3, 0])) for _ in done]
        end = [min(d + step, n) for d, step, n in zip(done, steps, lengths, strict=True)]
        tokens = whole.new(done, end)
        del tokens["q"]
        run.append(store, **tokens, seen=seen)
        update(store, batch=tokens["batch"], seen=seen)
        done = end
    expected = paged.summarised(kit, whole, rules, lengths)
    written = _lanes(expected, 8)
    found = _lanes(store, 8)
    there = (written != 255).any(-1)
    assert torch.equal(found[there], written[there])


def _lanes(store, size):
    """The bytes of each summary: [blocks * 20, bytes]."""
    quads = store.summaries.view(-1, QUADS, quad_bytes(size))
    means = quads[..., :size].unflatten(-1, (-1, 4)).mT
    numbers = quads[..., size:].unflatten(-1, (2, 4, 2)).transpose(-3, -2).flatten(-2)
    return torch.cat([means, numbers], -1).flatten(0, 2)
