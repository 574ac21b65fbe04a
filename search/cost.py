"""Predict what a plan costs in milliseconds: a sum over groups of terms fitted to times measured on the user's device.

    decode step = step + sequence * B  +  sum over groups of the terms of their patterns
    prefill     = step + token * B * n +  sum over groups of the terms of their patterns, B times

for B sequences of n tokens. The first part does not depend on rules. What a group adds, its pattern says
(`moa.plans.patterns.terms`): a decode step reads the cache's blocks, a prefill works on (query, key) pairs. It adds
that in each layer that reads its keys. Terms are milliseconds and not negative, so the search's costs stay sums over
groups, and a shorter span never costs more in a decode step. `moa.search.fit` finds the terms.

In a decode step in which a group reads less than it keeps, its pattern's terms are for the keys that it always reads,
and the terms `READS` are for what it chooses. Costs know them only where plans that read were measured.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from os import PathLike
from typing import Literal

import numpy as np
from pydantic import AliasChoices, Field, ValidationError

from moa.plans.errors import MoaError, ModelMismatch, brief
from moa.plans.model import ModelInfo
from moa.plans.patterns import FULL, PATTERNS, Rule, reach
from moa.plans.plan import Plan
from moa.plans.reading import COARSE, INSIDE, choices, fetched, opened
from moa.plans.replace import read
from moa.plans.schema import Strict, problem
from moa.plans.span import BLOCK, Floats, Reach
from moa.search.spread import SURE

Kind = Literal["decode", "prefill"]
FIXED: dict[Kind, tuple[str, ...]] = {"decode": ("step", "sequence"), "prefill": ("step", "token")}
"""Terms that do not depend on the plan."""
READS = ("page", "summary")
"""Terms of a decode step that only rules with `read` pay: of each page of 4 keys that they fetch by choice, and of each
summary that they score."""
PLACE = ("device", "threads", "backend", "dtype")
"""What must agree for costs to hold."""
_AGAIN = "measure again with `moa measure`"


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
            least, most = {*FIXED[kind], *_group_terms(type(FULL), kind)}, term_names(kind)
            if not least <= set(terms) <= {*most, *_of_reads(kind)} or not all(0 <= ms < inf for ms in terms.values()):
                found = brief(", ".join(f"{name} {ms:g}" for name, ms in terms.items()))
                raise MoaError(f"{path}: terms of {kind} must be {', '.join(most)}, 0 or more, found {found}; {_AGAIN}")
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

    @property
    def know_reads(self) -> bool:
        """Whether they say what a decode step takes in which a group reads less than it keeps."""
        return set(READS) <= set(self.terms.get("decode", ()))

    def check(self, model: ModelInfo, rules: Iterable[Rule] = ()) -> None:
        """Check that these are costs of `model`, and have all terms of some rules.

        Raises:
            ModelMismatch: They are of another model; each field that differs is named.
            MoaError: A rule has a term that they lack.
        """
        differences = self.model.differences(model)
        if differences:
            raise ModelMismatch(f"costs measured on another model (costs against this): {'; '.join(differences)}")
        for kind in self.terms:
            self._terms(kind, rules)

    def fixed(self, work: Work) -> float:
        """Return the milliseconds that do not depend on spans."""
        terms = self._terms(work.kind)
        return float(_fixed(work) @ [terms[name] for name in FIXED[work.kind]])

    def per_group(self, work: Work, rules: Sequence[Rule]) -> Floats:
        """Return the milliseconds that a group adds under each of some rules, in each layer that reads it: [rules]."""
        terms = {name: ms for name, ms in self._terms(work.kind, rules).items() if name not in FIXED[work.kind]}
        each: Floats = _per_group(work, rules, list(terms), self.model.head_size) @ list(terms.values())
        return each

    def predict(self, plan: Plan, work: Work) -> float:
        """Return the milliseconds of a plan."""
        terms = self._terms(work.kind, (rule for rules in plan.groups.values() for rule in rules))
        return float(counts(plan, work, list(terms)) @ list(terms.values()))

    def _terms(self, kind: Kind, rules: Iterable[Rule] = ()) -> dict[str, float]:
        """Return the terms in the order of `term_names`, or refuse if those of some rules are not all there."""
        if kind not in self.terms:
            raise MoaError(f"these costs know nothing of {kind}: measure again with both kinds")
        terms, rules = self.terms[kind], list(rules)
        if kind == "decode" and not self.know_reads and any(rule.read < 1 for rule in rules):
            raise MoaError(f"these costs know nothing of rules that read less than they keep: {_AGAIN[:-1]} --reads`")
        for pattern in dict.fromkeys(type(rule) for rule in rules):
            missing = [name for name in _group_terms(pattern, kind) if name not in terms]
            if missing:
                name = pattern.model_fields["pattern"].default
                raise MoaError(f"these costs lack {', '.join(missing)}, {kind} terms of {name}: {_AGAIN}")
        return {name: terms[name] for name in term_names(kind, reads=True) if name in terms}


def term_names(kind: Kind, *, reads: bool = False) -> tuple[str, ...]:
    """Return the names of all terms of a kind of work: the fixed ones, those of each pattern, and if asked of reads."""
    of_groups = [name for pattern in PATTERNS.values() for name in _group_terms(pattern, kind)]
    return (*FIXED[kind], *dict.fromkeys(of_groups), *(_of_reads(kind) if reads else ()))


def counts(plan: Plan, work: Work, terms: Sequence[str]) -> Floats:
    """Return how often each of some terms occurs, the fixed ones first: [terms]."""
    of_groups = terms[len(FIXED[work.kind]) :]
    size = plan.model.head_size
    layers = [_per_group(work, plan.groups[layer], of_groups, size).sum(0) for layer in plan.model.ruled_layers]
    return np.concatenate([_fixed(work), plan.model.readers @ layers])


def _fixed(work: Work) -> Floats:
    """Return how often each term of FIXED occurs."""
    return np.array([1.0, work.batch * (work.length if work.kind == "prefill" else 1)])


def _per_group(work: Work, rules: Sequence[Rule], terms: Sequence[str], size: int) -> Floats:
    """Return how often a group of head size `size` pays each term under each rule: [rules, terms]."""
    sees = reach(rules)
    if work.kind == "decode":
        each = _stepped(work, rules, sees, size)
    else:
        each = [_prefilled(work, rule, sees[i]) for i, rule in enumerate(rules)]
    return np.array([[paid.get(name, 0.0) for name in terms] for paid in each], np.float64)


def _stepped(work: Work, rules: Sequence[Rule], sees: Reach, size: int) -> list[dict[str, float]]:
    """Return how often a group pays each term of a decode step, under each rule."""
    kept = sees.span(work.length)
    share, given = (np.array([getattr(rule, name) for rule in rules]) for name in ("read256", "given"))
    among, pages = choices(kept, given), fetched(share, work.length, kept, given, size)
    less = pages < INSIDE * among
    blocks = work.batch * np.where(less, (kept - COARSE * among) / BLOCK, sees.cache_blocks(work.length))
    scored = np.where(pages > 0, among + INSIDE * opened(pages, among), 0)
    chosen = work.batch * np.where(less, [pages, scored], 0)
    return [
        {name: count(n) for name, count in rule.terms.decode.items()} | dict(zip(READS, paid, strict=True))
        for rule, n, paid in zip(rules, blocks.tolist(), chosen.T.tolist(), strict=True)
    ]


def _prefilled(work: Work, rule: Rule, sees: Reach) -> dict[str, float]:
    """Return how often a group pays each prefill term; blocks of a long text for all rules would fill the memory."""
    blocks = np.arange(-(-work.length // BLOCK))
    first, start = sees.first(blocks), sees.sink // BLOCK
    rows = np.minimum(BLOCK, work.length - BLOCK * blocks)
    keys = BLOCK * (blocks - (first - start)) + (rows + 1) / 2  # seen by the mean row of a block
    return {name: work.batch * count(rows * keys, first > start) for name, count in rule.terms.prefill.items()}


def _of_reads(kind: Kind) -> tuple[str, ...]:
    """Return the terms of a kind of work that only rules with `read` pay."""
    return READS if kind == "decode" else ()


def _group_terms(pattern: type[Rule], kind: Kind) -> Mapping[str, Callable[..., float]]:
    """Return the terms that a pattern has, with the functions that count them."""
    return pattern.terms.decode if kind == "decode" else pattern.terms.prefill
