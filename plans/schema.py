"""Define the base of every part of a plan file, and put pydantic's errors into the words of the file."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from moa.plans.errors import PlanError, brief, shortened

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass as Kind
else:
    Kind = type(BaseModel)

K = TypeVar("K")
V = TypeVar("V")


class _Worded(Kind):
    """Makes a call of the class raise our one line; parts of a document are checked without such calls."""

    def __call__(self, *args: Any, **given: Any) -> Any:
        try:
            return super().__call__(*args, **given)
        except ValidationError as error:
            raise PlanError(f"{self.__name__}: {problem(error)}") from None


class Strict(BaseModel, metaclass=_Worded):
    """Base of every part of the plan file: it is immutable and refuses unknown keys; docstrings go into the schema.

    Numbers are finite: NaN and infinity are no JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Frozen(dict[K, V]):
    """A mapping that does not change, as what holds it does not."""

    def _refuse(self, *args: Any, **given: Any) -> NoReturn:
        raise TypeError("this mapping does not change: make another of `dict(mapping)`")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (dict(self),)  # a copy of a dict would be filled item by item


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
