"""Synthetic profiles, with random harms that need not be monotone, and costs of a made-up device."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from moa.plans.model import ModelInfo, Sliding
from moa.profiler.profile import Profile, bin_size
from moa.search.cost import Costs


def synthetic(
    lengths: Sequence[int] = (512, 1024), sources: Sequence[str] = ("text", "facts"), sinks: Sequence[int] = (64,),
    sliding: Sliding | None = None, layers: int = 2, seed: int = 0, keydiff: Sequence[int] = (),
) -> Profile:  # fmt: skip
    """A profile of random harms; the edge at 0, which drops nothing, costs nothing, as in measured ones."""
    info = ModelInfo(
        architecture="LlamaForCausalLM", layers=layers, query_heads=4, kv_heads=2, head_size=64,
        rope={"theta": 1e4, "type": "default"}, sliding=sliding,
    )  # fmt: skip
    variants = (*(("sink_window", size) for size in sinks), *(("keydiff_window", size) for size in keydiff))
    rng = np.random.default_rng(seed)
    cuts = {}
    for source in sources:
        for n in lengths:
            bins = -(-n // bin_size(n))
            shape = (len(variants), len(info.ruled_layers), info.kv_heads, bins, bins)
            table = np.tril(rng.exponential(1.0, shape)).astype(np.float32)
            table[..., 0] = 0
            cuts[source, n] = table
    tokens = {cut: 10 + i for i, cut in enumerate(cuts)}
    return Profile(info, variants, cuts, tokens, dict.fromkeys(cuts, 1), {"seed": 3})


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., Profile]:
    return synthetic


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
