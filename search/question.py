"""Read, check and complete the question to a search: its profile, budgets and options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from moa.plans.errors import MoaError, brief
from moa.plans.model import DTYPES, Dtype
from moa.plans.plan import Plan, Provenance
from moa.profiler.profile import Profile
from moa.search.budget import ASSUMED, FORMS, Budget, cost, parse
from moa.search.choose import choose, pose, record
from moa.search.cost import Costs
from moa.search.descent import Descent
from moa.search.lengths import Lengths
from moa.search.objective import Mix
from moa.search.reads import may_read
from moa.search.solver import Solution

Figures = float | str | Sequence[float | str]
"""Figures of one kind of budget: `0.5`, `"0.5@4096"`, `"1.5@4096x8"`, or several of them."""

KEEPING = "keeping everything"
"""What provenance says of a plan that had to keep everything."""


class Options(TypedDict, total=False):
    """The options of a search other than its budgets; all may be left out."""

    minimise: str | None
    """Instead of harm, the cost to make least, such as `decode_ms@4096x4`; a budget on `harm` goes with it."""
    costs: Costs | str | PathLike[str] | None
    """Measured costs, for budgets in milliseconds."""
    lengths: Sequence[int] | None
    """The only profiled lengths that the plan is for; None for all of them, and longer ones."""
    max_length: int | None
    """The longest text that the plan is for, tokens."""
    source_weights: Mapping[str, float] | None
    """Weights of the profile's sources; those not named count 1."""
    patterns: Sequence[str] | None
    """Patterns to choose from; None for all that were profiled."""
    kv_dtype: str | None
    """Dtype of the cache that budgets and predictions in bytes count; None for what was profiled."""
    keep_all: bool
    """Whether every group keeps everything, so that only what steps read is chosen; no budget of what is kept."""
    time_limit: float
    """Seconds for the solver, per plan."""


@dataclass(frozen=True)
class Question:
    """A search that is ready to be solved.

    Attributes:
        profile: The profile.
        budgets: Budgets to keep, each with a length.
        minimise: The cost to minimise; None minimises harm.
        mix: How sources are weighed.
        costs: Measured costs, for budgets in milliseconds.
        lengths: Lengths that the plan is for.
        kv_dtype: Dtype of the cache, for figures in bytes.
        time_limit: Seconds for the solver, per plan.
        origin: Where plans come from, which each of them records.
        keep_all: Whether every group keeps everything.
    """

    profile: Profile
    budgets: tuple[Budget, ...]
    minimise: Budget | None
    mix: Mix
    costs: Costs | None
    lengths: Lengths
    kv_dtype: Dtype
    time_limit: float
    origin: Provenance
    keep_all: bool = False

    @classmethod
    def of(
        cls, profile: Profile | str | PathLike[str], budgets: Mapping[str, Figures], tool: str, *,
        minimise: str | None = None, costs: Costs | str | PathLike[str] | None = None,
        lengths: Sequence[int] | None = None, max_length: int | None = None,
        source_weights: Mapping[str, float] | None = None, patterns: Sequence[str] | None = None,
        kv_dtype: str | None = None, keep_all: bool = False, time_limit: float = 60.0,
    ) -> "Question":  # fmt: skip
        """Return the completed question; `tool` is the version that plans record, the rest is as in `Options`.

        Raises:
            MoaError: An option is invalid, or a file cannot be read.
        """
        kept = [parse(kind, str(figure)) for kind, figures in budgets.items() for figure in _listed(figures)]
        least = None if minimise is None else cost(minimise)
        if (least is not None) != any(budget.kind == "harm" for budget in kept):
            raise MoaError("--max-harm and --minimise go together: a limit of harm, and the cost to make least within")
        if kv_dtype is not None and kv_dtype not in DTYPES:
            raise MoaError(f"--kv-dtype must be one of {', '.join(DTYPES)}, found {brief(kv_dtype)}")
        if not time_limit > 0:
            raise MoaError(f"--time-limit must be over 0 seconds, found {time_limit}")
        known = costs if costs is None or isinstance(costs, Costs) else Costs.load(costs)
        measured = profile if isinstance(profile, Profile) else Profile.load(Path(profile))
        if patterns is not None:
            measured = measured.only(patterns)
        if "kl" in (measured.meta.get("loss"), *(loss for _, loss in measured.meta.get("sources", {}).values())):
            named = "this profile" if isinstance(profile, Profile) else profile
            raise MoaError(
                f"{named} holds slopes around a plan, not harm: search from a profile of a loss other than kl"
            )
        span = Lengths.of(measured, lengths, max_length)
        if known is not None:
            known.check(measured.model)
        stored: Any = kv_dtype or measured.dtype or ASSUMED
        placed = [budget if budget.kind == "harm" else budget.at(span.longest).stored(stored) for budget in kept]
        least = None if least is None else least.stored(stored)
        mix = Mix(dict(source_weights or {}))
        origin = record(None if isinstance(profile, Profile) else Path(profile), measured, placed, tool, mix.sources)
        if least is not None:
            origin = origin.model_copy(update={"budget": f"{origin.budget}, least {minimise}{least.unit}"})
        if lengths is not None:
            origin = origin.model_copy(update={"budget": f"{origin.budget}, for {','.join(map(str, lengths))}"})
        if keep_all:
            origin = origin.model_copy(update={"budget": f"{origin.budget}, {KEEPING}"})
        return cls(measured, tuple(placed), least, mix, known, span, stored, time_limit, origin, keep_all)

    def check(self) -> None:
        """Refuse everything that can be refused without solving.

        Raises:
            BudgetInfeasible: No plan keeps a budget.
            MoaError: There is no budget, or weights, lengths or costs do not fit.
        """
        pose(
            self.profile, self.budgets, mix=self.mix, costs=self.costs, minimise=self.minimise, lengths=self.lengths,
            kv_dtype=self.kv_dtype, keep_all=self.keep_all,
        )  # fmt: skip

    def solve(self, mix: Mix | None = None, descent: Descent | None = None) -> tuple[Plan, Solution]:
        """Return the plan that answers the question; `mix` replaces the weights, `descent` asks for its next plan.

        Raises:
            BudgetInfeasible: No plan keeps the budgets.
        """
        return choose(
            self.profile, self.budgets, mix=mix or self.mix, costs=self.costs, minimise=self.minimise,
            lengths=self.lengths, descent=descent, time_limit=self.time_limit, provenance=self.origin,
            kv_dtype=self.kv_dtype, keep_all=self.keep_all,
        )  # fmt: skip

    def told(self, solution: Solution) -> str:
        """Return a line about the solution."""
        state = "time limit reached" if solution.timed_out else "optimal"
        what, (given, left) = "objective" if self.minimise is None else self.minimise.named, solution.columns
        return (
            f"{state}: {what} {solution.value:.4g}, gap {solution.gap:.1e}, {solution.seconds:.1f} s, "
            f"{left} of {given} choices after pruning"
        )

    def kept(self, plan: Plan) -> list[str]:
        """Return a line about what a plan keeps at each length."""
        lines = []
        for n in self.lengths.all:
            bytes_ = plan.kv_bytes(n, dtype=self.kv_dtype)
            read = f", reads {plan.read_density(n):.3f}" if plan.reads() else ""
            share = bytes_ / plan.model.dense_kv_bytes(n, dtype=self.kv_dtype)
            beyond = ", longer than any profiled text" if n in self.lengths.ahead else ""
            lines.append(
                f"{n:>7} tokens: density {plan.density(n):.3f}{read}, KV {share:.3f} of dense, {bytes_ / 1e9:.4g} GB "
                f"in {self.kv_dtype}{beyond}"
            )
        return lines

    def with_harm(self, most: float) -> "Question":
        """Return the same question with another figure for the budget on harm."""
        budgets = (replace(b, most=most) if b.kind == "harm" else b for b in self.budgets)
        return replace(self, budgets=tuple(budgets))

    def level(self, plan: Plan, length: int) -> "Question":
        """Return the question whose plans keep and read no more at a length than `plan` does, where no budget holds.

        So plans that are compared at that length differ in what they keep there, not in how much.
        """
        if any(budget.length == length for budget in self.budgets):
            return self
        own = [Budget("density", plan.density(length), length)]
        if self.reads:
            own.append(Budget("read", plan.read_density(length), length))
        return replace(self, budgets=(*self.budgets, *own))

    @property
    def reads(self) -> bool:
        """Whether rules may read less than they keep."""
        return may_read(self.profile, (*self.budgets, self.minimise), self.costs)

    def left_out(self, *more: Budget) -> str:
        """Return a line where the time of steps is limited, and costs or profile know nothing of reads; else nothing.

        `more` are further budgets, as that which a front varies.
        """
        limits = [limit for limit in (*self.budgets, self.minimise, *more) if limit is not None]
        if (
            may_read(self.profile, limits, self.costs)
            or self.costs is None
            or not any(FORMS[limit.kind].times == "decode" for limit in limits)
        ):
            return ""
        missing = [] if self.costs.know_reads else ["costs (moa measure --reads)"]
        missing += [] if self.profile.reads else ["profile (moa profile --reads)"]
        return f"every rule reads all that it keeps: reads need {' and '.join(missing)} that know them"

    @property
    def harm(self) -> Budget | None:
        """The budget on harm; None if harm itself is minimised."""
        return next((budget for budget in self.budgets if budget.kind == "harm"), None)


def _listed(figures: Figures) -> Sequence[float | str]:
    return [figures] if isinstance(figures, str) or np.ndim(figures) == 0 else figures  # type: ignore[list-item, return-value]
