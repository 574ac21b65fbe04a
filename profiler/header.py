"""Read the header of a profile's file, which describes the tables. Headers of older versions are read here alone."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from moa.plans.errors import ProfileError, brief
from moa.plans.model import ModelInfo
from moa.plans.patterns import PATTERNS, Variant
from moa.plans.reading import READ_STEPS, ours
from moa.plans.schema import Strict, problem
from moa.plans.span import BLOCK

FORMAT: Literal["moa-profile-2"] = "moa-profile-2"

_Size = Annotated[int, Field(ge=BLOCK, multiple_of=BLOCK)]


def _known(name: str) -> str:
    if name not in PATTERNS:
        raise ValueError(f"pattern must be {', '.join(map(repr, PATTERNS))}, found {brief(name)}")
    return name


class Table(Strict):
    """The header's entry for one table."""

    source: str
    length: int = Field(ge=1)
    tokens: int = Field(ge=1)
    samples: int = Field(ge=1)


class ReadTable(Strict):
    """The header's entry for one table of reads."""

    source: str
    length: int = Field(ge=1)
    rows: int = Field(ge=1)


class Reads(Strict):
    """The header's part about reads."""

    selection: Annotated[str, BeforeValidator(ours)]
    shares: tuple[Annotated[int, Field(ge=1, lt=READ_STEPS)], ...] = Field(min_length=1)
    tables: tuple[ReadTable, ...] = Field(min_length=1)


class Header(Strict):
    """The header's JSON."""

    format: Literal["moa-profile-2"]
    model: ModelInfo
    variants: tuple[tuple[Annotated[str, AfterValidator(_known)], _Size], ...] = Field(min_length=1)
    cuts: tuple[Table, ...] = Field(min_length=1)
    estimators: dict[str, str] = Field(default_factory=dict)
    retrieval_tokens: int = Field(default=0, ge=0)
    reads: Reads | None = None
    meta: dict[str, Any]


class _First(Strict):
    """The sinks in headers of the format moa-profile-1: their sizes, by which keys they hold."""

    sinks: tuple[_Size, ...] = Field(min_length=1)
    keydiff: tuple[_Size, ...] = ()

    @property
    def variants(self) -> list[Variant]:
        return [*(("sink_window", s) for s in self.sinks), *(("keydiff_window", s) for s in self.keydiff)]


def read_header(found: dict[str, Any], path: str | Path) -> Header:
    """Return the header, checked.

    Raises:
        ProfileError: The header is broken, or of a format that this version does not know.
    """
    try:
        return Header.model_validate_json(json.dumps(_renewed(found)))
    except ValidationError as e:
        raise ProfileError(f"{path}: broken header: {problem(e)}") from None


def _renewed(found: dict[str, Any]) -> dict[str, Any]:
    """Return the header in today's format."""
    if found.get("format") != "moa-profile-1":
        return found
    names = _First.model_fields
    first = _First.model_validate_json(json.dumps({name: found[name] for name in names if name in found}))
    rest = {name: said for name, said in found.items() if name not in names}
    return {**rest, "format": FORMAT, "variants": first.variants}
