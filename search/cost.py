"""What a plan costs in milliseconds, fitted to measurements on the user's device, as a sum over groups.

    decode step = step + sequence * B  +  sum over groups of  block * B * blocks in the cache
    prefill     = step + token * B * n +  sum over groups of  B * (whole * pairs + windowed * pairs + chunk * chunks)

for B sequences of n tokens. The first part is what spans do not touch. A decode step reads the cache; a prefill works
on (query, key) pairs: `whole` in query blocks that see everything, which one causal call computes, `windowed` in the
others, each of which takes a call of its own (`chunk`). Terms are milliseconds and not negative (Lawson and Hanson's
NNLS), so the search's costs stay sums over groups, and a shorter span never costs more in a decode step.

The running model comes in as a callable, so nothing here knows of one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from os import PathLike
from typing import Literal

import numpy as np
from pydantic import AliasChoices, Field, ValidationError
from scipy.optimize import nnls

from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.model import ModelInfo
from moa.plans.plan import FULL, Plan, Rule
from moa.plans.replace import read
from moa.plans.schema import Strict, problem
from moa.plans.span import BLOCK, Floats, Ints, cache_blocks, first_block
from moa.search.spread import iqr

Kind = Literal["decode", "prefill"]
FIXED = {"decode": ("step", "sequence"), "prefill": ("step", "token")}
PER_GROUP = {"decode": ("block",), "prefill": ("whole", "windowed", "chunk")}
PLACE = ("device", "threads", "backend", "dtype")
"""What must agree for costs to hold."""


@dataclass(frozen=True)
class Work:
    """A decode step after `length` tokens, or a prefill of them, of `batch` sequences."""

    kind: Kind
    length: int
    batch: int = 1

    def __str__(self) -> str:
        return f"{self.kind}@{self.length}x{self.batch}"


class Measured(Strict):
    """One measurement."""

    plan: str
    kind: Kind
    length: int
    batch: int
    ms: float = Field(gt=0)
    """Median over rounds."""
    iqr: float = Field(ge=0, validation_alias=AliasChoices("iqr", "spread"))
    """Distance between the quartiles, as a share of the median."""
    predicted: float = Field(ge=0)
    """By the fit, milliseconds."""


class Costs(Strict):
    """Fitted terms, in milliseconds, and what they were fitted to."""

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
            MoaError: No such file, or not costs.
        """
        try:
            costs = cls.model_validate_json(read(path))
        except OSError as error:
            raise MoaError(f"cannot read costs {path}: {error.strerror}") from None
        except ValidationError as error:
            raise MoaError(f"{path} is not a file of costs made by `moa measure`: {problem(error)}") from None
        missing = [name for name in PLACE if name not in costs.environment]
        if missing:
            raise MoaError(f"{path}: environment must have {', '.join(PLACE)}; {', '.join(missing)} missing")
        for kind, terms in costs.terms.items():
            if set(terms) != {*FIXED[kind], *PER_GROUP[kind]} or not all(0 <= ms < inf for ms in terms.values()):
                raise MoaError(
                    f"{path}: terms of {kind} must be {', '.join((*FIXED[kind], *PER_GROUP[kind]))}, 0 or more"
                )
        return costs

    @property
    def place(self) -> str:
        """Device, threads, back-end and dtype, in words."""
        about = self.environment
        return f"{about['device']}, {about['threads']} threads, {about['backend']}, {about['dtype']}"

    def check(self, model: ModelInfo) -> None:
        """Raise ModelMismatch, naming each field that differs, unless these are costs of `model`."""
        differences = self.model.differences(model)
        if differences:
            raise ModelMismatch(f"costs measured on another model (costs against this): {'; '.join(differences)}")

    def fixed(self, work: Work) -> float:
        """Milliseconds of what spans do not touch."""
        terms = self._terms(work.kind)
        return float(_fixed(work) @ [terms[name] for name in FIXED[work.kind]])

    def per_group(self, work: Work, sink: Ints, alpha: Ints, beta256: Ints) -> Floats:
        """Milliseconds that a group adds under each of some rules: [rules]."""
        terms = self._terms(work.kind)
        counts: Floats = _counts(work, sink, alpha, beta256) @ np.array([terms[name] for name in PER_GROUP[work.kind]])
        return counts

    def predict(self, plan: Plan, work: Work) -> float:
        """Milliseconds of a plan."""
        layers = plan.model.ruled_layers
        return self.fixed(work) + float(sum(self.per_group(work, *plan.rules(layer)).sum() for layer in layers))

    def _terms(self, kind: Kind) -> Mapping[str, float]:
        if kind not in self.terms:
            raise MoaError(f"these costs know nothing of {kind}: measure again with both kinds")
        return self.terms[kind]


def probes(model: ModelInfo, longest: int) -> dict[str, Plan]:
    """The plans to measure: all, half, an eighth of the text, and spans that differ from group to group."""
    sizes = [max(BLOCK, longest // part // BLOCK * BLOCK) for part in (16, 8, 4, 2)]
    kinds = [
        *(Rule(alpha=BLOCK + size, beta=0) for size in sizes),
        Rule(alpha=0, beta=0.25),
        Rule(alpha=0, beta=0.5),
        FULL,
    ]
    drawn = np.random.default_rng(0).integers(len(kinds), size=(len(model.ruled_layers), model.kv_heads))
    mixed = {layer: [kinds[i] for i in row] for layer, row in zip(model.ruled_layers, drawn, strict=True)}
    return {
        "dense": Plan.dense(model),
        "half": Plan.from_rules(model, {}, defaults=Rule(alpha=0, beta=0.5)),
        "narrow": Plan.from_rules(model, {}, defaults=kinds[1]),
        "mixed": Plan.from_rules(model, mixed),
    }


def measure(
    model: ModelInfo, works: Sequence[Work], run: Callable[[Plan, Work], Sequence[float]], *,
    environment: Mapping[str, str | int], rounds: int = 3, progress: Callable[[int, int, str], None] | None = None,
) -> Costs:  # fmt: skip
    """Measure the probes and fit.

    Args:
        model: The model that `run` runs.
        works: What to measure, at two lengths at least per kind, so that growth with the length can be told.
        run: Milliseconds of a plan at some work, once or several times.
        environment: What the figures hold for.
        rounds: All are measured in turn, this many times over, so that drift of the machine meets all alike.
        progress: Called after each measurement with how many are done, how many there are, and the last one's name.
    """
    for kind in {work.kind for work in works}:
        if len({work.length for work in works if work.kind == kind}) < 2:
            raise MoaError(f"{kind} must be measured at two lengths or more")
    plans = probes(model, max(work.length for work in works))
    todo = [(name, work) for work in works for name in plans]
    taken: dict[tuple[str, Work], list[float]] = {each: [] for each in todo}
    for done in range(rounds * len(todo)):
        name, work = todo[done % len(todo)]
        taken[name, work].extend(run(plans[name], work))
        if progress:
            progress(done + 1, rounds * len(todo), f"{work} {name}")
    terms = {kind: _fit(kind, plans, taken) for kind in dict.fromkeys(work.kind for work in works)}
    unchecked = Costs(model=model, environment=dict(environment), terms=terms, error={}, measured=())
    rows, error = [], {}
    for (name, work), ms in taken.items():
        rows.append(Measured(
            plan=name, kind=work.kind, length=work.length, batch=work.batch, ms=round(float(np.median(ms)), 4),
            iqr=round(iqr(ms), 4), predicted=round(unchecked.predict(plans[name], work), 4),
        ))  # fmt: skip
    for kind in terms:
        error[kind] = float(np.median([abs(row.predicted / row.ms - 1) for row in rows if row.kind == kind]))
    return unchecked.model_copy(update={"measured": tuple(rows), "error": error})


def _fit(kind: Kind, plans: Mapping[str, Plan], taken: Mapping[tuple[str, Work], Sequence[float]]) -> dict[str, float]:
    """Terms of least squared relative error."""
    rows, times = [], []
    for (name, work), ms in taken.items():
        if work.kind == kind:
            plan = plans[name]
            counts = sum(_counts(work, *plan.rules(layer)).sum(0) for layer in plan.model.ruled_layers)
            rows.append(np.concatenate([_fixed(work), counts]))
            times.append(float(np.median(ms)))
    table = np.array(rows) / np.array(times)[:, None]
    scale = np.maximum(table.max(0), 1e-300)
    found, _ = nnls(table / scale, np.ones(len(times)))
    return dict(zip((*FIXED[kind], *PER_GROUP[kind]), (found / scale).tolist(), strict=True))


def _fixed(work: Work) -> Floats:
    """How often each term of FIXED occurs."""
    return np.array([1.0, work.batch * (work.length if work.kind == "prefill" else 1)])


def _counts(work: Work, sink: Ints, alpha: Ints, beta256: Ints) -> Floats:
    """How often each term of PER_GROUP occurs for a group under each rule: [rules, terms]."""
    if work.kind == "decode":
        return work.batch * cache_blocks(sink, alpha, beta256, work.length)[:, None].astype(np.float64)
    return work.batch * np.array([_prefilled(work.length, *rule) for rule in zip(sink, alpha, beta256, strict=True)])


def _prefilled(length: int, sink: int, alpha: int, beta256: int) -> tuple[float, float, int]:
    """Whole and windowed pairs, windowed blocks; of one rule: all rules' blocks of a long text fill the memory."""
    blocks = np.arange(-(-length // BLOCK))
    first = first_block(sink, alpha, beta256, blocks)
    rows = np.minimum(BLOCK, length - BLOCK * blocks)
    keys = BLOCK * (blocks - (first - sink // BLOCK)) + (rows + 1) / 2  # seen by the mean row of a block
    windowed = first > sink // BLOCK
    pairs = rows * keys
    return float(pairs[~windowed].sum()), float(pairs[windowed].sum()), int(windowed.sum())
