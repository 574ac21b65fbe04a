"""Define the exceptions of the whole package as one family, so that one `except` and one exit code serve all.

Their messages quote what they found by `brief`.
"""


class MoaError(ValueError):
    """Bad input; the message is one line with the rule, the value found and the valid choices."""


class PlanError(MoaError):
    """A plan file or a rule that breaks the schema."""


class ProfileError(MoaError):
    """A profile that is damaged, incomplete, or made by something else."""


class ModelMismatch(MoaError):
    """A plan, profile or cost table made for another model."""


class BudgetInfeasible(MoaError):
    """No plan fits the budget; the message names the smallest feasible value."""


class Unsupported(MoaError):
    """Something that the runtime cannot honour, refused by name rather than computed wrongly."""


def cause(error: Exception) -> str:
    """Return what an error says, of the system's errors without the number and the path that Python adds."""
    return getattr(error, "strerror", None) or str(error)


def brief(value: object) -> str:
    """Return the `repr` of a value that an error quotes, cut to 60 characters: data and options may be of any size."""
    return shortened(repr(value))


def shortened(text: str, most: int = 60) -> str:
    """Return the text as one line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
