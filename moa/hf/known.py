"""Find a plan for a model: made for its weights on this machine, shipped, in its own folder or its hub repository."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moa.hf.fingerprint import fingerprint
from moa.plans import hub
from moa.plans.config import longest_text
from moa.plans.content import Content
from moa.plans.errors import MoaError, PlanError, brief
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

    A plan that reads all that it keeps comes before any that reads less, since nothing was said about reading.

    Plans that `remember` kept are for the same weights. Shipped plans are for a model of the same shape and name, and
    those in the model's own folder or repository for one of the same shape. The hub is asked only where no other fits.

    Raises:
        MoaError: No such plan is known; the error says how to make one.
        PlanError: A file of a plan is damaged.
    """
    if not 0 < budget <= 1:
        raise MoaError(f"budget must be a density over 0 and at most 1, found {brief(budget)}")
    info, home = ModelInfo.of(model), str(getattr(model.config, "_name_or_path", "") or "")
    made = [Plan.load(path) for path in sorted(_folder(model).glob("*.yaml"))]
    ours = [plan for plan in map(Plan.load, sorted(shipped())) if plan.model.name == info.name]
    beside = _plans(hub.all_in_folder(Path(home))) if home and Path(home).is_dir() else []
    longest = longest_text(model.config)
    if found := _best((*ours, *made, *beside), info, budget, longest):
        return found
    there, said = [], ""
    if home and hub.is_repo(home):
        try:
            there = _plans(hub.all_in_repo(home))
        except PlanError as error:
            said = f"; {error}"
        if found := _best(there, info, budget, longest):
            return found
    known = {
        plan.fingerprint(): _density(plan, longest) for plan in (*ours, *made, *beside, *there) if _fits(plan, info)
    }
    others = ", ".join(f"{density:.3g}" for density in sorted(known.values()))
    raise MoaError(
        f"no plan of density {budget:g} or less is known for {info.name} (known: {others or 'none'}{said}); make one: "
        f"moa compress MODEL -o DIR --budget {budget:g}"
    )


def _best(plans: Iterable[Plan], info: ModelInfo, budget: float, longest: int | None) -> Plan | None:
    fitting = [plan for plan in plans if _fits(plan, info) and _density(plan, longest) <= budget * (1 + 1e-9)]
    return max(fitting, key=lambda plan: (not plan.reads(), _density(plan, longest)), default=None)


def _fits(plan: Plan, info: ModelInfo) -> bool:
    return not plan.model.differences(info)


def _plans(contents: Iterable[Content]) -> list[Plan]:
    return [Plan(**dict(content)) for content in contents]


def _density(plan: Plan, longest: int | None) -> float:
    """Return the density at the longest text that the plan is for, or else that the model takes; 1 if none is known."""
    longest = plan.predicted.lengths[-1] if plan.predicted else longest
    return 1.0 if longest is None else plan.density(longest)


def made_here() -> list[Path]:
    """Return the files of all plans that `remember` kept, of whatever weights."""
    return sorted(_root().glob("*/*.yaml"))


def _folder(model: Any) -> Path:
    """Return the folder of plans for the weights of `model`."""
    return _root() / fingerprint(model)


def _root() -> Path:
    return cache_folder() / "plans"


def cache_folder() -> Path:
    """Return the folder of what is kept for this user: `$MOA_CACHE`, else `moa` in the user's cache folder."""
    root = os.environ.get("MOA_CACHE")
    return Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moa"
