"""Find a plan for a model: among those that were made for its very weights on this machine, and the shipped ones."""

import os
from pathlib import Path
from typing import Any

from moa.hf.fingerprint import fingerprint
from moa.plans.errors import MoaError, brief
from moa.plans.file import shipped
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan

BUDGET = 0.25
"""The density that is looked for where the user names none."""


def remember(plan: Plan, model: Any) -> Path:
    """Keep a plan for the weights that `model` holds, and return its file.

    Raises:
        OSError: The folder cannot be written.
        PlanError: The file cannot be written.
    """
    folder = _folder(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plan.fingerprint()}.yaml"
    plan.save(path)
    return path


def known_plan(model: Any, budget: float) -> Plan:
    """Return the plan for `model` that keeps most within a density, at the longest text that the plan is for.

    Plans that `remember` kept are for the same weights. Shipped plans are for a model of the same shape and name.

    Raises:
        MoaError: No such plan is known; the error says how to make one.
        PlanError: A file of the folder is damaged.
    """
    if not 0 < budget <= 1:
        raise MoaError(f"budget must be a density over 0 and at most 1, found {brief(budget)}")
    info = ModelInfo.of(model)
    made = [Plan.load(path) for path in sorted(_folder(model).glob("*.yaml"))]
    ours = [plan for plan in map(Plan.load, sorted(shipped())) if plan.model.name == info.name]
    found = {plan.fingerprint(): plan for plan in (*ours, *made) if not plan.model.differences(info)}
    fitting = [plan for plan in found.values() if _density(plan) <= budget * (1 + 1e-9)]
    if not fitting:
        others = ", ".join(f"{_density(plan):.3g}" for plan in sorted(found.values(), key=_density))
        raise MoaError(
            f"no plan of density {budget:g} or less is known for {info.name} (known: {others or 'none'}); make one: "
            f"moa compress MODEL -o DIR --budget {budget:g}"
        )
    return max(fitting, key=_density)


def _density(plan: Plan) -> float:
    """Return the density at the longest text that the plan is for; 1 where it does not say for which it is."""
    return plan.density(plan.predicted.lengths[-1]) if plan.predicted else 1.0


def _folder(model: Any) -> Path:
    """Return the folder of plans for the weights of `model`, in `$MOA_CACHE`, else in the user's cache folder."""
    root = os.environ.get("MOA_CACHE")
    cache = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moa"
    return cache / "plans" / fingerprint(model)
