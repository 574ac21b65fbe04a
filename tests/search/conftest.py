"""Costs of a made-up device."""

import pytest

from moa.search.cost import Costs

COSTS = {
    "decode": {"step": 20.0, "sequence": 1.5, "block": 0.02, "keydiff": 0.1},
    "prefill": {
        "step": 30.0, "token": 0.4, "whole": 2e-5, "windowed": 4e-5, "chunk": 0.01, "keydiff": 6e-5,
        "keydiff_chunk": 0.03,
    },
}  # fmt: skip


@pytest.fixture
def info(make_profile):
    return make_profile(layers=4).model


@pytest.fixture
def known(info):
    """Costs of a made-up device."""
    place = {"device": "abacus", "threads": 1, "backend": "torch", "dtype": "float32"}
    return Costs(model=info, environment=place, terms=COSTS, error={"decode": 0.0, "prefill": 0.0}, measured=())


@pytest.fixture
def reading(known):
    """The same costs, of reads too."""
    decode = known.terms["decode"] | {"page": 0.002, "summary": 0.0001}
    return known.model_copy(update={"terms": known.terms | {"decode": decode}})
