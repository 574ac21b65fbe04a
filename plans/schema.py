"""Define the base of every part of a plan file, and put pydantic's errors into the words of the file."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from moa.plans.errors import brief, shortened


class Strict(BaseModel):
    """Base of every part of the plan file: it is immutable and refuses unknown keys; docstrings go into the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ProblemError(Exception):
    """A broken part of a document: the keys that lead to it, and what is wrong there."""

    def __init__(self, place: Sequence[Any], what: str) -> None:
        super().__init__(place, what)
        self.place, self.what = tuple(place), what

    def __str__(self) -> str:
        place = ".".join(shortened(str(key)) for key in self.place)
        return f"{place}: {self.what}" if place else self.what


def problem(error: ValidationError, place: Sequence[Any] = ()) -> ProblemError:
    """Return the first problem that pydantic found in the part of a document at `place`.

    An unknown key is named before a missing one: it may be the missing one, misspelt.
    """
    found = error.errors(include_url=False)
    unknown = (entry for entry in found if entry["type"] == "extra_forbidden")
    first = next(unknown, found[0]) if found[0]["type"] == "missing" else found[0]
    kind, message, value = first["type"], first["msg"], brief(first["input"])
    if kind == "value_error":
        what = str(first["ctx"]["error"])
    elif kind == "extra_forbidden":
        what = "unknown key"
    elif kind == "missing":
        what = "is missing"
    else:
        what = f"{message[0].lower()}{message[1:]}, found {value}"
    return ProblemError((*place, *first["loc"]), what)
