"""The releases of vLLM that have what `moa_vllm` hooks into; in others it takes no plan."""

import functools
import re
from typing import Any

from moa.plans.errors import Unsupported
from moa_vllm import settings

OLDEST, NEWEST = (0, 32), (0, 33)
"""`serving/vllm/tests/test_contract.py` names each hook."""


def supported(version: str) -> bool:
    """Return whether a release is one of them."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and OLDEST <= (int(found[1]), int(found[2])) <= NEWEST


def refuse_plans(version: str) -> None:
    """Let every configuration that asks for a plan be refused, and others be as they are."""
    from vllm.config import VllmConfig

    made = VllmConfig.__init__

    @functools.wraps(made)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        if settings.of(self) is not None:
            oldest, newest = (".".join(map(str, release)) for release in (OLDEST, NEWEST))
            raise Unsupported(f"vLLM {version}: moa-vllm hooks into {oldest} to {newest}")

    VllmConfig.__init__ = checked
