"""Define the rule: the numbers that all patterns share, and all that the rest of the code asks of a pattern."""

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer

from moa.plans.errors import PlanError, brief
from moa.plans.patterns.terms import IN_PLACE, Terms
from moa.plans.reading import COARSE, READ_STEPS
from moa.plans.schema import Strict
from moa.plans.span import BETA_STEPS, BLOCK, FIRST_KEYS, HOLDS, Reach, Window, linear

LIMIT = 2**31 - 1
"""Largest sink and |alpha|, so that int64 arithmetic in 1/256ths of a token cannot overflow."""

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


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError(f"must be a number from 0 to 1, found {brief(value)}")
    steps = float(value) * BETA_STEPS
    if not steps.is_integer():
        low = math.floor(steps)
        raise ValueError(
            f"must be a multiple of 1/{BETA_STEPS}, found {value}; "
            f"the nearest are {low / BETA_STEPS} and {(low + 1) / BETA_STEPS}"
        )
    return steps / BETA_STEPS


def _plain(share: float) -> float | int:
    return int(share) if share.is_integer() else share


Share = Annotated[float, BeforeValidator(_share), PlainSerializer(_plain)]
"""A number from 0 to 1 in steps of 1/256."""


class Rule(Strict):
    """A pattern with its numbers, for one group. Each pattern is a subclass with a name of its own.

    `Rule(alpha=128, beta=0)` makes a rule of the pattern that it names, by default `sink_window`, as in a plan file.

    Attributes:
        pattern: The pattern's name.
        window: Function from `numbers` to the window's size at a length (`moa.plans.span`).
        holds: Which keys the sink holds, a name in `moa.plans.span.HOLDS`.
        terms: What a group's time is made of; those of `sink_window`, unless a pattern is computed in another way.
        label: How reports call groups of this pattern; empty if they need no name.
        about: What the label means, for a caption.
    """

    pattern: str
    sink: Annotated[int, BeforeValidator(_sink)] = BLOCK
    """Tokens that are always seen, in addition to the window; a positive multiple of 64."""
    read: Annotated[Share, Field(gt=0)] = 1.0
    """Part of the bytes of all keys and values that a token of a short call reads, over 0 to 1 in steps of 1/256."""

    window: ClassVar[Window] = staticmethod(linear)
    holds: ClassVar[str] = FIRST_KEYS
    terms: ClassVar[Terms] = IN_PLACE
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
        """The rule's numbers as the integers that `window` takes."""
        raise NotImplementedError

    @classmethod
    def of(cls, numbers: Numbers) -> "Rule":
        """Return the rule that has these `numbers`."""
        raise NotImplementedError

    @classmethod
    def candidates(
        cls, sink: int, near: Sequence[int], far: Sequence[int], short: int, longest: int
    ) -> Sequence[Numbers]:
        """Return the rules that the search may choose from, the simplest first; of like rules the first stays.

        Args:
            sink: Sink of every rule, tokens.
            near, far: Windows to have at the lengths `short` and `longest`, tokens.
            short, longest: Two lengths, tokens; the windows between them should go evenly through all growths.
        """
        raise NotImplementedError

    @classmethod
    def probe(cls, window: float, length: int, *, grows: bool = False) -> "Rule":
        """Return a rule to time when costs are measured: of a sink of one block and, at a length, of a given window.

        Args:
            window: Size of the window at `length`, tokens.
            length: The length, tokens.
            grows: Whether the window grows from nothing; else it is the same at all lengths.
        """
        raise NotImplementedError

    @property
    def variant(self) -> Variant:
        """The variant that a profile measures for this rule."""
        return self.pattern, self.sink

    @property
    def read256(self) -> int:
        """What it reads, in steps of 1/256, 1 to 256."""
        return int(self.read * READ_STEPS)

    @property
    def whole(self) -> Self:
        """The same rule, reading all that it keeps."""
        return self if self.read == 1 else self.model_copy(update={"read": 1.0})

    def reading(self, read256: int) -> Self:
        """Return the same rule, reading the share `read256` / 256 of all bytes."""
        return self.model_copy(update={"read": read256 / READ_STEPS})

    @property
    def given(self) -> int:
        """The first keys that a row always reads, tokens: the sink's where keys move into it, else a page."""
        return self.given_of(self.sink)

    @classmethod
    def given_of(cls, sink: int) -> int:
        """Return `given` of the pattern's rules with a sink of that size."""
        return sink if cls.moves_keys() else COARSE

    @classmethod
    def moves_keys(cls) -> bool:
        """Return whether keys move into the sink as the text grows."""
        return cls.holds != FIRST_KEYS

    @property
    def shown(self) -> dict[str, float]:
        """The numbers of its pattern other than the sink, by their names in the plan file."""
        return {name: value for name, value in self.model_dump().items() if name not in Rule.model_fields}


PATTERNS: dict[str, type[Rule]] = {}
"""All patterns by their names, as `register` has met them."""

Kind = TypeVar("Kind", bound=type[Rule])


def register(kind: Kind) -> Kind:
    """Register a pattern under its name; a decorator.

    Raises:
        PlanError: Nothing says how keys are chosen that its sink `holds`.
    """
    rule: type[Rule] = kind
    if rule.holds not in HOLDS:
        raise PlanError(f"{rule.__name__}.holds must be {', '.join(map(repr, HOLDS))}, found {brief(rule.holds)}")
    PATTERNS[rule.model_fields["pattern"].default] = rule
    return kind


def reach(rules: Sequence[Rule]) -> Reach:
    """Return the reach of these rules, of shape [rules]."""
    return Reach([rule.numbers for rule in rules], [type(rule).window for rule in rules])


def parse(value: Any) -> Rule:
    """Return the rule that a mapping from the plan file describes; a rule is returned as it is.

    Raises:
        ValueError: No pattern has the name; for other faults it is pydantic's ValidationError, a subclass.
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
