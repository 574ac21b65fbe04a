"""Predict what a plan costs in milliseconds: a sum over groups of terms fitted to times measured on the user's device.

    decode step = step + sequence * B  +  sum over groups of  B * block * blocks in the cache  [+ keydiff]
    prefill     = step + token * B * n +  sum over groups of  B * (whole * pairs + windowed * pairs + chunk * chunks)
                                          or of keydiff sinks  B * (keydiff * pairs + keydiff_chunk * chunks)

for B sequences of n tokens. The first part does not depend on spans. A decode step reads the cache; for keydiff groups
the host also asks whether keys move. A prefill works on (query, key) pairs: `whole` pairs lie in query blocks that see
everything, which one causal call computes, `windowed` pairs in the other blocks, each of which takes a call of its own
(`chunk`). For keydiff sinks every query block is such a chunk, and its keys are copied. Terms are milliseconds and not
negative, so the search's costs stay sums over groups, and a shorter span never costs more in a decode step.
`moa.search.fit` finds the terms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from os import PathLike
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import AliasChoices, Field, ValidationError

from moa.plans.errors import MoaError, ModelMismatch, brief
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.replace import read
from moa.plans.schema import Strict, problem
from moa.plans.span import BLOCK, Floats, Reach
from moa.search.spread import SURE

Kind = Literal["decode", "prefill"]
Bools = npt.NDArray[np.bool_]
FIXED = {"decode": ("step", "sequence"), "prefill": ("step", "token")}
PER_GROUP = {
    "decode": ("block", "keydiff"),
    "prefill": ("whole", "windowed", "chunk", "keydiff", "keydiff_chunk"),
}
PLACE = ("device", "threads", "backend", "dtype")
"""What must agree for costs to hold."""


@dataclass(frozen=True)
class Work:
    """A decode step of `batch` sequences after `length` tokens, or a prefill of `length` tokens."""

    kind: Kind
    length: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.kind}@{self.length}x{self.batch}"


class Measured(Strict):
    """The measured times of one plan at one work."""

    plan: str
    kind: Kind
    length: int
    batch: int
    ms: float = Field(gt=0)
    """Median over rounds."""
    iqr: float = Field(ge=0, validation_alias=AliasChoices("iqr", "spread"))
    """Distance between the quartiles, as a share of the median."""
    standard_error: float | None = None
    """Of the median, as a share of it; None of a few rounds."""
    predicted: float = Field(ge=0)
    """By the fit, milliseconds."""

    @property
    def is_sure(self) -> bool:
        """Whether the median's standard error is known and small."""
        return self.standard_error is not None and self.standard_error <= SURE


class Costs(Strict):
    """The fitted terms, in milliseconds, and what they were fitted to."""

    version: Literal[1] = 1
    model: ModelInfo
    environment: dict[str, str | int]
    """Device, back-end, dtype, threads, versions."""
    terms: dict[Kind, dict[str, float]]
    error: dict[Kind, float]
    """Median absolute error of the fit, as a share of the measured."""
    measured: tuple[Measured, ...]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> "Costs":
        """Read costs that `moa measure` wrote.

        Raises:
            MoaError: No such file exists, it holds no costs, or its costs are of a version with other terms.
        """
        costs = cls.read(path)
        missing = [name for name in PLACE if name not in costs.environment]
        if missing:
            raise MoaError(f"{path}: environment must have {', '.join(PLACE)}; {', '.join(missing)} missing")
        for kind, terms in costs.terms.items():
            wanted = (*FIXED[kind], *PER_GROUP[kind])
            if set(terms) != set(wanted) or not all(0 <= ms < inf for ms in terms.values()):
                found = brief(", ".join(f"{name} {ms:g}" for name, ms in terms.items()))
                raise MoaError(
                    f"{path}: terms of {kind} must be {', '.join(wanted)}, 0 or more, found {found}; measure again "
                    "with `moa measure`"
                )
        return costs

    @classmethod
    def read(cls, path: str | PathLike[str]) -> "Costs":
        """Return costs of any version, which are about to be replaced.

        Raises:
            MoaError: No such file exists, or it holds no costs.
        """
        try:
            return cls.model_validate_json(read(path))
        except OSError as error:
            raise MoaError(f"cannot read costs {path}: {error.strerror}") from None
        except ValidationError as error:
            raise MoaError(f"{path} is not a file of costs made by `moa measure`: {problem(error)}") from None

    @property
    def place(self) -> str:
        """The device, threads, back-end and dtype, in words."""
        about = self.environment
        return f"{about['device']}, {about['threads']} threads, {about['backend']}, {about['dtype']}"

    def check(self, model: ModelInfo) -> None:
        """Raise ModelMismatch, naming each field that differs, unless these are costs of `model`."""
        differences = self.model.differences(model)
        if differences:
            raise ModelMismatch(f"costs measured on another model (costs against this): {'; '.join(differences)}")

    def fixed(self, work: Work) -> float:
        """Return the milliseconds that do not depend on spans."""
        terms = self._terms(work.kind)
        return float(_fixed(work) @ [terms[name] for name in FIXED[work.kind]])

    def per_group(self, work: Work, reach: Reach, moves_keys: Bools) -> Floats:
        """Return the milliseconds that a group adds under each of some rules: [rules].

        Args:
            work: The decode step or prefill.
            reach: The reach of the rules, of shape [rules].
            moves_keys: Whether the host moves keys, per rule: [rules].
        """
        terms = self._terms(work.kind)
        each: Floats = _per_group(work, reach, moves_keys) @ [terms[name] for name in PER_GROUP[work.kind]]
        return each

    def predict(self, plan: Plan, work: Work) -> float:
        """Return the milliseconds of a plan."""
        terms = self._terms(work.kind)
        return float(counts(plan, work) @ [terms[name] for name in (*FIXED[work.kind], *PER_GROUP[work.kind])])

    def _terms(self, kind: Kind) -> Mapping[str, float]:
        if kind not in self.terms:
            raise MoaError(f"these costs know nothing of {kind}: measure again with both kinds")
        return self.terms[kind]


def counts(plan: Plan, work: Work) -> Floats:
    """Return how often each term of FIXED and PER_GROUP occurs."""
    layers = plan.model.ruled_layers
    groups = [_per_group(work, plan.reach(layer), plan.moves_keys(layer)).sum(0) for layer in layers]
    return np.concatenate([_fixed(work), np.sum(groups, 0)])


def _fixed(work: Work) -> Floats:
    """Return how often each term of FIXED occurs."""
    return np.array([1.0, work.batch * (work.length if work.kind == "prefill" else 1)])


def _per_group(work: Work, reach: Reach, moves_keys: Bools) -> Floats:
    """Return how often each term of PER_GROUP occurs for a group under each rule: [rules, terms]."""
    if work.kind == "decode":
        return np.stack([work.batch * reach.cache_blocks(work.length), moves_keys], 1).astype(np.float64)
    return work.batch * np.array([_prefilled(work.length, reach[i], bool(moves_keys[i])) for i in range(len(reach))])


def _prefilled(length: int, reach: Reach, moves_keys: bool) -> tuple[float, ...]:
    """Return the prefill terms of one rule; blocks of a long text for all rules at once would fill the memory."""
    blocks = np.arange(-(-length // BLOCK))
    first, start = reach.first(blocks), reach.sink // BLOCK
    rows = np.minimum(BLOCK, length - BLOCK * blocks)
    keys = BLOCK * (blocks - (first - start)) + (rows + 1) / 2  # seen by the mean row of a block
    windowed = first > start
    pairs = rows * keys
    if moves_keys:
        return 0.0, 0.0, 0.0, float(pairs.sum()), float(len(blocks))
    return float(pairs[~windowed].sum()), float(pairs[windowed].sum()), float(windowed.sum()), 0.0, 0.0
