"""Keep what `moa.compress` was asked and has decided in its folder, so that it goes on after a kill."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from pydantic import Field, ValidationError

from moa.hf.known import cache_folder
from moa.outputs import writable
from moa.plans.errors import MoaError, brief
from moa.plans.replace import read, replace_json
from moa.plans.schema import Strict, problem
from moa.search.cost import Kind

NAME = "compress.json"
OUTPUTS = ("costs.json", "profile.safetensors", "plan.yaml", "evaluation.json", "figures.json", "report.html")
"""What the stages write, in their order."""


class Chosen(Strict):
    """The size of the profile that was decided on."""

    lengths: tuple[int, ...] = Field(min_length=1)
    samples: int = Field(ge=1)
    seconds: float
    """What it is expected to take."""
    pace: tuple[float, float]
    """Seconds of a pass: those per token, and those per square of tokens."""


class Time(Strict):
    """Milliseconds of the plan at some work."""

    kind: Kind
    length: int
    batch: int
    predicted: float
    measured: float | None


class Solved(Strict):
    """What the search said of its plan."""

    harm: float
    gap: float
    times: tuple[Time, ...]


class Spot(Strict):
    """A plan of a front."""

    budget: float
    """What it was solved for."""
    cost: float
    """What it takes of that."""
    harm: float
    """The search's objective."""
    density: float
    read: float
    kv_bytes: int
    chosen: bool
    """Whether it is the plan of this folder."""


class Row(Strict):
    """A front: plans by rising cost, all of which keep the budgets that are not varied."""

    kind: str
    """The budget that is varied, one of `moa.search.budget.FORMS`."""
    length: int
    batch: int
    dtype: str
    """Of the cache, in bytes."""
    plans: tuple[Spot, ...]


class Run(Strict):
    """Milliseconds of the dense model and of the plan at some work, one after the other on this machine."""

    kind: Kind
    length: int
    batch: int
    dense: float | None
    """Median of the runs; None where it does not fit in memory."""
    plan: float | None
    predicted: float | None
    """Of the plan, where costs are known."""


class State(Strict):
    """The content of `compress.json`."""

    asked: dict[str, Any]
    """All that the folder's files depend on."""
    named: str | None = None
    """The model as it was asked for; None in files of older versions."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds that each stage took, in all runs."""
    profile: Chosen | None = None
    search: Solved | None = None
    front: Row | None = None
    runs: tuple[Run, ...] | None = None
    evaluation: dict[str, int] | None = None
    """Number of samples of each task per length."""

    @classmethod
    def load(cls, path: Path) -> "State":
        """Return the state in a file.

        Raises:
            MoaError: It is something else.
            OSError: It cannot be read.
        """
        try:
            return cls.model_validate_json(read(path))
        except ValidationError as error:
            raise MoaError(str(problem(error))) from None


def compress_folder(asked: Mapping[str, Any]) -> Path:
    """Return the folder of a question in the user's cache folder."""
    return cache_folder() / "compress" / sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be written, or holds files that the stages would take for their own.

    Raises:
        MoaError: The folder cannot be used; the error says why.
    """
    if not folder.is_dir():
        if os.path.lexists(folder):  # also a link that leads nowhere
            raise MoaError(f"cannot write {folder}: it is not a folder")
        writable(folder, "folder", State.load)
        return
    path = folder / NAME
    writable(path, "file of `moa compress`", State.load)
    if not path.exists() and (found := [name for name in OUTPUTS if (folder / name).exists()]):
        raise MoaError(f"{folder / found[0]} is there without a {NAME}, so it is of other work; name another folder")


class Job:
    """The folder of one question.

    Attributes:
        folder: The folder.
        state: What was asked and decided, and the seconds spent.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], named: str) -> None:
        """Read what an earlier run decided; nothing is written before the first decision.

        Raises:
            MoaError: The folder is of another question.
        """
        self.folder, self.state = folder, State(asked=json.loads(json.dumps(asked)), named=named)
        if not self._path.exists():
            return
        mine, self.state = self.state.asked, State.load(self._path)
        there = self.state.asked
        if differ := [name for name in {**there, **mine} if there.get(name) != mine.get(name)]:
            told = (f"{name}: {brief(there.get(name))} against {brief(mine.get(name))}" for name in differ)
            raise MoaError(f"{folder} holds another question (its against this): {'; '.join(told)}; name another")

    @property
    def spent(self) -> float:
        """Seconds that all stages took, in all runs."""
        return sum(self.state.seconds.values())

    def keep(self, **decided: Any) -> None:
        """Keep decisions, by the names in `State`; they are on disk before this returns."""
        self.state = self.state.model_copy(update=decided)
        self.folder.mkdir(exist_ok=True)
        replace_json(self._path, self.state.model_dump(mode="json"))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of the block to its stage's."""
        before = perf_counter()
        try:
            yield
        finally:
            taken = self.state.seconds.get(stage, 0.0) + perf_counter() - before
            self.state = self.state.model_copy(update={"seconds": {**self.state.seconds, stage: round(taken, 1)}})
            if self._path.exists():  # else nothing was decided, and a refusal leaves no folder
                self.keep()

    @property
    def _path(self) -> Path:
        return self.folder / NAME
