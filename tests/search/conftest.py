"""Synthetic profiles, with random harms that need not be monotone."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from moa.plans.model import ModelInfo, Sliding
from moa.profiler.profile import Profile, bin_size


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
