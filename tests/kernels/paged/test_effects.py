"""What reading little costs the rows of a text, against attention over the keys that the definition chooses."""

import pytest
import torch

from moa.kernels.paged.effects import effects
from moa.kernels.paged.summaries import of_text
from moa.kernels.softmax import Softmax

LOGITS = torch.tensor([0.0, 3.0, -2.0, 5.0], dtype=torch.float64)


def tensors(n, heads, groups, size):
    g = torch.Generator().manual_seed(n)
    return [torch.randn(h, n, size, generator=g, dtype=torch.float64) for h in (heads, groups, groups, heads)]


def output(q, k, v, softmax):
    """The attention of one row's heads [heads, D] over some keys [keys, D]."""
    scores = q @ k.T * softmax.scale
    if softmax.cap is not None:
        scores = softmax.cap * (scores / softmax.cap).tanh()
    powers = scores.exp()
    total = powers.sum(1, keepdim=True)
    return powers / (total if softmax.sink_logits is None else total + softmax.sink_logits.exp()[:, None]) @ v


@pytest.mark.parametrize(
    ("n", "heads", "groups", "size", "softmax"),
    [
        (335, 4, 2, 16, Softmax(0.3)),
        (1000, 3, 3, 8, Softmax(0.3)),
        (641, 4, 1, 16, Softmax(0.3, 1.5, LOGITS)),
        (50, 2, 1, 8, Softmax(0.3)),
    ],
)
def test_effects_are_the_change_of_each_rows_output(paged, n, heads, groups, size, softmax):
    q, k, v, dout = tensors(n, heads, groups, size)
    rows = torch.tensor([0, 15, 16, n // 2, *range(n - 67, n)]) % n
    shares, given = (128, 32, 8, 1), (16, 64)
    found = effects(q, k, v, dout, rows=rows, shares=shares, given=given, softmax=softmax)
    assert found.shape == (2, 4, groups, len(rows))
    per = heads // groups
    for at, row in enumerate(rows.tolist()):
        for g in range(groups):
            mine = slice(g * per, (g + 1) * per)
            queries, keys, values = q[mine, row], k[g, : row + 1], v[g, : row + 1]
            own = softmax._replace(sink_logits=None if softmax.sink_logits is None else softmax.sink_logits[mine])
            whole = output(queries, keys, values, own)
            for i, first in enumerate(given):
                for j, share in enumerate(shares):
                    read = torch.from_numpy(
                        paged.chosen((queries * softmax.scale).numpy(), keys.numpy(), share, first, row + 1)
                    )
                    cut = output(queries, keys[read], values[read], own)
                    wanted = ((cut - whole) * dout[mine, row]).sum()
                    torch.testing.assert_close(found[i, j, g, at], wanted, rtol=1e-9, atol=1e-9)
                    assert read.all() or abs(wanted) > 1e-9


def test_rows_of_half_precision_choose_by_the_keys_as_stored(paged):
    q, k, v, dout = (x.bfloat16() for x in tensors(640, 2, 1, 16))
    call = {"rows": torch.tensor([600, 639]), "shares": (32,), "given": (16,), "softmax": Softmax(0.3)}
    half = effects(q, k, v, dout, **call)
    assert half.dtype == torch.float32
    wide = effects(*(x.double() for x in (q, k, v, dout)), **call)
    torch.testing.assert_close(half.double(), wide, rtol=1e-4, atol=1e-4)


def test_a_row_that_reads_everything_loses_nothing():
    q, k, v, dout = tensors(40, 2, 1, 8)
    found = effects(q, k, v, dout, rows=torch.arange(40), shares=(8,), given=(64,), softmax=Softmax(0.3))
    assert found.abs().max() < 1e-12


@pytest.mark.parametrize("n", [5, 64, 200])
def test_summaries_of_a_text_are_those_of_the_definition(paged, n):
    keys = torch.randn(n, 16, generator=torch.Generator().manual_seed(n))
    blocks = of_text(keys).view(-1, 5, 32)
    for page, quad in ((16, slice(0, 1)), (4, slice(1, None))):
        for i in range(n // page):
            numbers, scale, spread = paged.summary(keys[page * i : page * i + page].numpy())
            block, inside = divmod(i, 64 // page)
            here, lane = blocks[block, quad][inside // 4], inside % 4
            assert [int(x) for x in here[lane:16:4]] == [
                (numbers[c] & 15) | (numbers[4 + c] & 15) << 4 for c in range(4)
            ]
            assert here[16:].view(torch.bfloat16)[[lane, 4 + lane]].tolist() == [float(scale), float(spread)]
