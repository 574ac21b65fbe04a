"""Sinks of other keys under the interpreter: what back-end `reference` leaves in them, to the last bit."""

import numpy as np
import pytest
import torch

TAKEN_BACK = [[190, 250], [193, 256], [230, 260], [180, 240], [330, 260]]
STEPS = [[255, 191], [256, 192], [257, 193], [270, 200], [262, 199], [330, 260]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ends", [[[101, 1], [166, 259], [330, 260]], STEPS, TAKEN_BACK])
def test_sinks_are_the_reference_s(kit, dtype, ends):
    rules = kit.Rules(np.array([64, 64]), np.array([128, 100]), np.array([0, 60]))
    keys = kit.texts_of_ties([330, 260], 2, 16, 0, dtype)
    found, wanted = (
        kit.sinks_after("triton", keys, ends, rules),
        kit.sinks_after("reference", keys, [[330, 260]], rules),
    )
    for mine, theirs in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(mine, theirs, strict=True))
