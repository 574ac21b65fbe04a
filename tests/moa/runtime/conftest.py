"""A model under its plan; lets the tests of a cache share `feeding.py`."""

import sys
from pathlib import Path

import pytest
import torch

import moa

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def applied(model, plan):
    with moa.apply(model, plan), torch.no_grad():
        yield model
