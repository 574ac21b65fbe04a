"""Provide `moa.list_plans`: the plans that are known on this machine."""

from moa.hf.known import made_here
from moa.plans.file import shipped
from moa.plans.plan import Plan


def list_plans() -> dict[str, Plan]:
    """Return the shipped plans by name, then those that `moa.compress` made here, by file.

    Either name is one that `Plan.load` and `--plan` take.

    Raises:
        PlanError: A file is damaged.
    """
    return {name: Plan.load(name) for name in (*sorted(shipped()), *map(str, made_here()))}
