"""Define the lengths that a plan is for: those that the profile measured, and longer ones up to the longest meant."""

from collections.abc import Sequence
from dataclasses import dataclass

from moa.plans.errors import MoaError
from moa.plans.span import LONGEST
from moa.profiler.profile import Profile

AHEAD = 4
"""A plan is for texts of up to so many times the longest profiled length, unless the user or the model says less."""


@dataclass(frozen=True)
class Lengths:
    """The lengths that the search looks at, ascending.

    Attributes:
        profiled: Measured lengths that count, tokens.
        ahead: Longer lengths, each twice the one before, of which the last is the longest intended; empty where the
            plan is for profiled lengths alone.
    """

    profiled: tuple[int, ...]
    ahead: tuple[int, ...] = ()

    @classmethod
    def of(cls, profile: Profile, chosen: Sequence[int] | None = None, longest: int | None = None) -> "Lengths":
        """Return the lengths of a plan made from this profile.

        Args:
            profile: The profile.
            chosen: Profiled lengths that the plan is for; None for all profiled ones and longer ones.
            longest: The longest intended length; without it the longest of `chosen`, or `AHEAD` times the longest
                profiled, but no more than the model takes.

        Raises:
            MoaError: A length was not profiled, or the longest is out of range.
        """
        if chosen is not None and not (chosen and set(chosen) <= set(profile.lengths)):
            raise MoaError(f"lengths must be of the profiled {list(profile.lengths)}, found {list(chosen)}")
        profiled = tuple(sorted(set(profile.lengths if chosen is None else chosen)))
        known, most = profiled[-1], min(profile.max_length or LONGEST, LONGEST)
        if longest is None:
            longest = known if chosen is not None else max(known, min(AHEAD * known, most))
        if not known <= longest <= max(known, most) or longest % 1:
            raise MoaError(
                f"the longest intended length must be an integer from {known}, the longest profiled one that the plan "
                f"is for, to {max(known, most)}, found {longest}"
            )
        ahead = []
        while known < longest:
            known = min(2 * known, longest)
            ahead.append(known)
        return cls(profiled, tuple(ahead))

    @property
    def all(self) -> tuple[int, ...]:
        """Every length, ascending."""
        return self.profiled + self.ahead

    @property
    def longest(self) -> int:
        """The longest intended length, at which a budget without a length of its own holds."""
        return self.all[-1]
