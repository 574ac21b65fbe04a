"""Make the plans of our rows, and time them: a prefill, decode steps behind it, and the peak of memory in both."""

from collections.abc import Sequence
from typing import Any

import baselines
import torch
from torch import Tensor

from moa.bench.filling import Context
from moa.bench.timing import decode_from, peak_bytes, prefill, reset_peak, timed
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.runtime.variant import Variant

WARM, STEPS = 256, 5
"""Tokens of the prefill that comes before a timed one, and decode steps that are timed, after one that is not."""
PLAN = "plan"
ROWS = {
    "exact": PLAN, "uniform": "uniform", "two-group": "two-group", "per-layer": "per-layer", baselines.ABSOLUTE: "MoA",
}  # fmt: skip
"""The rows of `baselines.py` that stand beside the peers, and their names here."""


def plans(
    profile: Profile, absolute: Profile | None, length: int, longest: int, densities: Sequence[float]
) -> list[tuple[str, Plan]]:  # fmt: skip
    """Return the plans of our rows at a length; none keeps more bytes there than `plan` of its density."""
    made = baselines.plans(profile, absolute, length, longest, densities)
    found = ((name.rsplit(" ", 1), plan) for name, plan in made)
    return [(f"{ROWS[kind]} {density}", plan) for (kind, density), plan in found if kind in ROWS]


@torch.inference_mode()
def once(model: Any, plan: Plan | None, ids: Tensor) -> dict[str, Any]:
    """Return the seconds of a prefill of a text [1, n] but for its last tokens, of decode steps over these, the peak.

    A peer compresses in that time what a plan never stores.
    """
    way, n = Variant(plan), ids.shape[1] - STEPS - 1
    prefill(model, way, ids[:, :WARM])
    cache = way.cache(model, ids.shape[1])
    reset_peak(model.device)
    with way.on(model):
        first = timed(lambda: model(ids[:, :n], past_key_values=cache, use_cache=True, logits_to_keep=1), model.device)
    steps = decode_from(cache, model, way, 1, STEPS, Context(ids, cache))
    return {"prefill": first, "steps": steps, "peak": peak_bytes(model.device)}
