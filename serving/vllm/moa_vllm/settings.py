"""What `--additional-config` asks for."""

import functools
from typing import Any, NamedTuple

from moa.plans.errors import MoaError, brief
from moa.plans.plan import Plan

KEYS = ("moa_plan", "moa_groups")


class Settings(NamedTuple):
    """What is asked for.

    Attributes:
        path: The plan's file, or the name of a shipped plan.
        groups: KV-cache groups; None chooses them.
    """

    path: str
    groups: int | None

    @property
    def plan(self) -> Plan:
        """The plan."""
        return _load(self.path)


_load = functools.cache(Plan.load)


def of(config: Any) -> Settings | None:
    """Return what a `VllmConfig` asks for; None if that is no plan.

    Raises:
        MoaError: A key that begins with `moa_` is unknown, or a value has another type.
    """
    given = config.additional_config if isinstance(config.additional_config, dict) else {}
    ours = {key: value for key, value in given.items() if key.startswith("moa_")}
    if not ours:
        return None
    unknown = sorted(set(ours) - set(KEYS))
    path, groups = ours.get("moa_plan"), ours.get("moa_groups")
    if unknown or not isinstance(path, str) or not (groups is None or type(groups) is int):
        raise MoaError(f'--additional-config takes {{"moa_plan": PATH, "moa_groups": NUMBER}}, found {brief(ours)}')
    return Settings(path, groups)
