"""What a rule is, whatever its pattern: the numbers that all have, and all that the rest of the code asks of one."""

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

from pydantic import BeforeValidator

from moa.plans.errors import brief
from moa.plans.schema import Strict
from moa.plans.span import BLOCK, Reach, Window, linear

LIMIT = 2**31 - 1
"""Largest sink and |alpha|, so that int64 arithmetic in 1/256ths of a token cannot overflow."""

FIRST_KEYS = "first"
"""`Rule.holds` of patterns whose sinks hold the first keys of the text."""

Variant = tuple[str, int]
"""What a profile measures for a rule: its pattern and its sink, tokens. A label on a table."""

Numbers = tuple[int, int, int]
"""A rule as the three integers that its `window` takes, the sink first."""


def integer(value: Any) -> int:
    """Return a whole number, which no float or bool is."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"must be an integer, found {brief(value)}")
    return operator.index(value)


def _sink(value: Any) -> int:
    sink = integer(value)
    if not BLOCK <= sink <= LIMIT or sink % BLOCK:
        raise ValueError(f"must be a positive multiple of {BLOCK}, found {sink}")
    return sink


class Rule(Strict):
    """One pattern with its numbers, for one group. Each pattern is a child of this, with one name.

    `Rule(alpha=128, beta=0)` is of the pattern that it names, or of `sink_window`, as in a plan file.

    Attributes:
        pattern: The pattern's name.
        sink: Keys besides the window that are always seen, tokens; a positive multiple of 64.
        window: Grows as the rule says (`moa.plans.span`); takes `numbers`.
        holds: Which keys the sink holds: `FIRST_KEYS`, or a name in `moa.kernels.held.HISTORIES` of others.
        label: How reports call groups of this pattern; empty where they need not be told from others.
        about: What the label means, for a caption.
    """

    pattern: str
    sink: Annotated[int, BeforeValidator(_sink)] = BLOCK

    window: ClassVar[Window] = staticmethod(linear)
    holds: ClassVar[str] = FIRST_KEYS
    label: ClassVar[str] = ""
    about: ClassVar[str] = ""

    if TYPE_CHECKING:

        def __init__(self, **numbers: Any) -> None: ...

    def __new__(cls, **numbers: Any) -> "Rule":
        """Return a rule of the pattern that the numbers name."""
        if cls is not Rule:
            return super().__new__(cls)
        return _kind(numbers.get("pattern", "sink_window"))(**numbers)

    @property
    def numbers(self) -> Numbers:
        """The rule as the integers that `window` takes."""
        raise NotImplementedError

    @classmethod
    def of(cls, numbers: Numbers) -> "Rule":
        """Return the rule of these `numbers`."""
        raise NotImplementedError

    @classmethod
    def candidates(
        cls, sink: int, near: Sequence[int], far: Sequence[int], short: int, longest: int
    ) -> Sequence[Numbers]:
        """Return what the search may choose from, the simplest first: of rules that are alike the first stays.

        Args:
            sink: Of all of them, tokens.
            near, far: Windows to have at the lengths `short` and `longest`, tokens.
            short, longest: Two lengths, tokens; the windows between them should go evenly through all growths.
        """
        raise NotImplementedError

    @property
    def variant(self) -> Variant:
        """What a profile measures for it."""
        return self.pattern, self.sink

    @classmethod
    def moves_keys(cls) -> bool:
        """Whether the host moves keys to the sink as the text grows, so that no compiled graph can hold it."""
        return cls.holds != FIRST_KEYS

    @property
    def shown(self) -> dict[str, float]:
        """The numbers besides the sink, by their names in the plan file."""
        return {name: value for name, value in self.model_dump().items() if name not in ("pattern", "sink")}


PATTERNS: dict[str, type[Rule]] = {}
"""All patterns by their names, as `register` has met them."""

Kind = TypeVar("Kind", bound=type[Rule])


def register(kind: Kind) -> Kind:
    """Make a pattern known; a decorator."""
    rule: type[Rule] = kind
    PATTERNS[rule.model_fields["pattern"].default] = rule
    return kind


def reach(rules: Sequence[Rule]) -> Reach:
    """Return what the rules see: of shape [rules]."""
    return Reach([rule.numbers for rule in rules], [type(rule).window for rule in rules])


def parse(value: Any) -> Rule:
    """Return the rule that a mapping of the plan file describes; a rule is returned as it is.

    Raises:
        ValueError: It names no pattern that there is. Of other faults pydantic's ValidationError, which is one too.
    """
    if isinstance(value, Rule):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"must be a mapping of a rule's keys, found {brief(value)}")
    if "pattern" not in value:
        raise ValueError("needs the key 'pattern'")
    return _kind(value["pattern"]).model_validate(value)


def _kind(name: Any) -> type[Rule]:
    if not isinstance(name, str) or name not in PATTERNS:
        raise ValueError(f"pattern must be {', '.join(map(repr, PATTERNS))}, found {brief(name)}")
    return PATTERNS[name]
