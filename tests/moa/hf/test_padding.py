"""Padded batches to packed tokens and back."""

import pytest
import torch

from moa.hf.padding import Packing

CPU = torch.device("cpu")


def batch(count: int, width: int) -> torch.Tensor:
    """Numbers that are all different and none 0: [batch, heads, width, D]."""
    return 1 + torch.arange(count * 2 * width * 3, dtype=torch.float32).view(count, 2, width, 3)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_real_tokens_come_back_and_padded_ones_are_0(width: int, seed: int) -> None:
    x = batch(3, width)
    real = torch.rand(3, width, generator=torch.Generator().manual_seed(seed)) < 0.6
    packing = Packing(real, 3, width, CPU)
    packed = packing.pack(x)
    assert torch.equal(packing.unpack(packed), (x * real[:, None, :, None]).transpose(1, 2))
    if width > 1:  # a single column is computed along
        assert torch.equal(packed, x.transpose(1, 2)[real])
        assert packing.cu_seqlens.tolist() == [0, *real.sum(1).cumsum(0).tolist()]
    assert packing.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("width", [1, 4])
def test_without_padding_every_token_is_packed(width: int) -> None:
    x, packing = batch(3, width), Packing(None, 3, width, CPU)
    assert torch.equal(packing.pack(x), x.transpose(1, 2).flatten(0, 1))
    assert packing.cu_seqlens.tolist() == [0, width, 2 * width, 3 * width]
    assert torch.equal(packing.unpack(packing.pack(x)), x.transpose(1, 2))


def test_a_padded_single_column_is_0_whatever_was_computed() -> None:
    x = batch(2, 1)
    x[1] = torch.nan
    packing = Packing(torch.tensor([[True], [False]]), 2, 1, CPU)
    out = packing.unpack(packing.pack(x))
    assert torch.equal(out[0], x[0].transpose(0, 1))
    assert torch.equal(out[1], torch.zeros(1, 2, 3))
