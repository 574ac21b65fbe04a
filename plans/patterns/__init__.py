"""The patterns: one registered class per file. `docs/plan.md` says what each keeps, CONTRIBUTING how to add one."""

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from moa.plans.patterns.rule import LIMIT, PATTERNS, Rule, Variant, parse, reach, register
from moa.plans.patterns.sink_window import SinkWindow

# isort: split
# Patterns are listed in the order of their imports; the one above is that of rules that name no pattern.
from moa.plans.patterns.keydiff_window import KeyDiffWindow

__all__ = [
    "FULL", "LIMIT", "PATTERNS", "AnyRule", "KeyDiffWindow", "Rule", "SinkWindow", "Variant", "parse", "reach",
    "register",
]  # fmt: skip

AnyRule = Annotated[SerializeAsAny[Rule], BeforeValidator(parse)]
"""A rule of any pattern, in a model of pydantic's."""

FULL = Rule(alpha=0, beta=1)
"""Full attention."""
