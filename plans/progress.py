"""Define the callables by which long-running functions report progress."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called after each step with what is done, what there is to do in all, and what the step was."""

Note = Callable[[str], None]
"""Called with a line for the user, about what was found on the way."""


def silent(*_: object) -> None:
    """Say nothing."""
