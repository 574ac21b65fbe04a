"""What a command answered, without times, dates and versions: what harmless changes must not change."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from fuzz_parts.cases import Base

from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.budget import parse
from moa.search.cost import Costs

NAMES = {"name", "architecture"}
"""What a model is called, which decides nothing."""


class Unreadable(Exception):
    """A command succeeded, and what it wrote is not what it should be."""


def answer(base: Base, folder: Path, out: str) -> Any:
    """The answer of a line of `base` that ran in `folder` and printed `out`.

    Raises:
        Unreadable: Its output is missing or cannot be read.
    """
    path = folder / base.output
    try:
        if base.command == "profile":
            return _profile(Profile.load(path))
        if base.command in ("search", "refine"):
            plans = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
            return [(p.name, _plan(Plan.load(p))) for p in plans]
        if base.command == "compress":
            return _plan(Plan.load(path / "plan.yaml")), json.loads((path / "figures.json").read_text())["rows"]
        if base.command == "measure":
            costs = Costs.load(path)
            return costs.model.model_dump(exclude=NAMES), [(m.plan, m.kind, m.length) for m in costs.measured]
        if base.command == "eval" and base.output:
            return json.loads(path.read_text())["rows"]
        if base.command == "bench":
            return _numbers_of_bench(out)
    except (OSError, ValueError, KeyError) as error:
        raise Unreadable(str(error)) from error
    if base.command == "generate":
        return re.sub(r"in [\d.]+ s, then (?:[\d.,]+ tokens/s|no more tokens)", "", out)
    return out


def over_budget(line: list[str], path: Path) -> list[str]:
    """Budgets on density that the plan at `path` does not keep, of a search by `line`."""
    if line[0] not in ("search", "refine") or not path.is_file():
        return []
    plan, problems = Plan.load(path), []
    for text in (value for option, value in pairwise(line) if option == "--max-density"):
        budget = parse("density", text)
        # A budget without a length holds at the longest that the plan is for.
        for n in [budget.length] if budget.length else ([max(plan.predicted.lengths)] if plan.predicted else []):
            if plan.density(n) > budget.most * (1 + 1e-9):
                problems.append(f"density {plan.density(n)} at {n}, over {text}")
    return problems


def _profile(found: Profile) -> Any:
    tables = {cut: table.tobytes() for cut, table in found.cuts.items()}
    return (
        found.model.model_dump(exclude=NAMES),
        found.variants,
        tables,
        found.tokens,
        found.samples,
        found.estimators,
    )


def _plan(found: Plan) -> Any:
    return found.model.model_dump(exclude=NAMES), found.groups, found.predicted


def _numbers_of_bench(out: str) -> Any:
    """The columns of bytes and of what is kept; the others are times."""
    rows = [re.split(r"  +", line.strip()) for line in out.splitlines() if line[:1].isdecimal()]
    return [(row[:2], row[-3:] if len(row) > 6 else []) for row in rows]
