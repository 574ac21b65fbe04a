"""Back-ends by name."""

import pytest
import torch

from moa.kernels import backend, reference, sdpa
from moa.plans.errors import Unsupported


def test_load_gives_the_named_one():
    assert backend.load("reference")[:4] == ("reference", reference.attend, reference.append, reference.step)
    assert backend.load("torch").step is sdpa.step


def test_unknown_name_lists_the_choices():
    with pytest.raises(Unsupported, match=r"'flash'.*reference, torch, numba, triton"):
        backend.load("flash")


def test_triton_is_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="needs a GPU"):
        backend.load("triton")
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="pip install"):
        backend.load("triton")


def test_pick_by_device():
    assert backend.pick("cuda:1") == "triton"
    assert backend.pick(torch.device("cpu")) == "numba"
    assert backend.pick("meta") == "torch"
