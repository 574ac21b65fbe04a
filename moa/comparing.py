"""Provide `moa.compare_runs`: plans and runs beside each other, on one page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from moa.evaluation.summary import table
from moa.outputs import read_result, writable
from moa.plans.errors import MoaError, ModelMismatch, brief
from moa.plans.file import title
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.replace import replace
from moa.report import page, plots
from moa.report import plan as told

Source = str | PathLike[str]
"""A plan (its file, or the name of a shipped one), a folder of `moa compress`, or a result of `moa eval`."""


@dataclass(frozen=True)
class Compared:
    """What is beside each other.

    Attributes:
        plans: The plans by name.
        lengths: Lengths at which they are shown, tokens.
        rows: Rows of all evaluations, each under its run's name.
        runs: Environment of each run, by name.
    """

    plans: dict[str, Plan]
    lengths: tuple[int, ...]
    rows: list[dict[str, Any]]
    runs: dict[str, dict[str, Any]]

    def figures(self) -> dict[str, Any]:
        """Return everything in JSON types."""
        plans = told.figures(self.plans, self.lengths, self.dtype) if self.plans else []
        return {"plans": plans, "runs": self.runs, "rows": self.rows}

    @property
    def dtype(self) -> Any:
        """The dtype of caches: that of the first plan."""
        return next(iter(self.plans.values())).kv_dtype

    def differ(self) -> list[str]:
        """Return a line for each of the runs' circumstances that differs: figures are comparable but for these."""
        names = list(dict.fromkeys(key for about in self.runs.values() for key in about))
        found = []
        for name in names:
            said = {run: about.get(name, "not said") for run, about in self.runs.items()}
            if len(set(map(str, said.values()))) > 1:
                found.append(f"{name} differs: {', '.join(f'{value} in {run}' for run, value in said.items())}")
        return found


def compare_runs(
    sources: Sequence[Source], output: Source | None = None, *, lengths: Sequence[int] | None = None
) -> Compared:
    """Put plans and runs beside each other, and write a page about them.

    Args:
        sources: Two or more plans, folders of `moa compress` or results of `moa eval -o`, all of one model.
        output: The page (.html); None writes none.
        lengths: Lengths at which plans are shown, tokens; None for those that they were made for.

    Returns:
        The plans and the rows of all runs.

    Raises:
        MoaError: A source is none of these, or there are fewer than two.
        ModelMismatch: They are of different models.
    """
    if len(sources) < 2:
        raise MoaError(f"give two or more plans or runs to compare, found {len(sources)}")
    if lengths is not None and min(lengths, default=0) < 1:
        raise MoaError(f"lengths must be 1 or more, found {brief(list(lengths))}")
    path = None if output is None else Path(output)
    if path is not None:
        writable(path, "comparison", page.is_page)
    found = _read(sources, lengths)
    script = "" if path is None else plots.library()
    try:
        text = _page(found, script)  # made in any case: figures of other kinds or shapes are noticed
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, MoaError):
            raise
        raise MoaError(
            f"of {', '.join(found.runs)} a figure is missing or of another kind: a file is damaged"
        ) from None
    if path is not None:
        replace(path, text.encode())
    return found


def _read(sources: Sequence[Source], lengths: Sequence[int] | None) -> Compared:
    names = [title(Path(source).name if Path(source).is_dir() else source).removesuffix(".json") for source in sources]
    if len(set(names)) < len(names):
        names = [f"{i} {name}" for i, name in enumerate(names, 1)]
    plans, rows, runs = dict[str, Plan](), list[dict[str, Any]](), dict[str, dict[str, Any]]()
    models: dict[str, ModelInfo] = {}
    for name, source in zip(names, sources, strict=True):
        plan, run = _source(source)
        if plan is not None:
            plans[name], models[name] = plan, plan.model
        if run is not None:
            try:
                models[name] = ModelInfo.model_validate(run["model"])
                rows += [{**row, "row": f"{name}: {row['row']}"} for row in run["rows"]]
                runs[name] = dict(run["environment"])
            except (ValidationError, KeyError, TypeError, ValueError):
                raise MoaError(f"{source} is damaged: rows of a model and an environment were expected") from None
    first = names[0]
    for name, model in models.items():
        if differences := models[first].differences(model):
            raise ModelMismatch(f"{first} and {name} are of different models: {'; '.join(differences)}")
    made = {n for plan in plans.values() if plan.predicted for n in plan.predicted.lengths}
    shown = lengths or made or {row["length"] for row in rows} or {1024, 4096}
    return Compared(plans, tuple(sorted(set(shown))), rows, runs)


def _source(source: Source) -> tuple[Plan | None, Mapping[str, Any] | None]:
    """Return the plan and the run of a source, either of which it may lack."""
    path = Path(source)
    if path.is_dir():
        return Plan.load(path / "plan.yaml"), _run(path / "figures.json")
    if path.suffix == ".json" and path.is_file():
        return None, _run(path)
    return Plan.load(source), None


def _run(path: Path) -> dict[str, Any]:
    return read_result(path, ("model", "environment", "rows"), "moa eval or moa compress")


def _page(found: Compared, script: str) -> str:
    sections: list[page.Section] = []
    cards: list[tuple[str, str]] = []
    if found.plans:
        costs = told.costs(found.plans, found.lengths, found.dtype)
        sections.append(("What plans cost", costs.caption, page.tabled((costs.headings, costs.rows))))
        longest, first = found.lengths[-1], next(iter(found.plans))
        for name, plan in found.plans.items():
            share = plan.kv_bytes(longest, dtype=found.dtype) / plan.model.dense_kv_bytes(longest, dtype=found.dtype)
            cards.append((f"{share:.0%} of memory", f"{name}, at {longest:,} tokens"))
        maps = [plots.heat_map(p, found.lengths, f"heat-map-{i}", n) for i, (n, p) in enumerate(found.plans.items())]
        grown = [plots.growth(p, longest, f"growth-{i}", n) for i, (n, p) in enumerate(found.plans.items())]
        sections.append((*page.keeps(found.plans.values()), page.beside(maps)))
        sections.append(("How windows grow", "Keys that a query sees after so many tokens.", page.beside(grown)))
        for name, plan in list(found.plans.items())[1:]:
            other = told.differences(found.plans[first], plan, found.lengths)
            sections.append((f"From {first} to {name}", other.caption, page.tabled((other.headings, other.rows))))
    if found.rows:
        sections += page.evaluated(found.rows, table(found.rows))
    if found.runs:
        keys = list(dict.fromkeys(key for about in found.runs.values() for key in about))
        cells = [[key, *(str(about.get(key, "-")) for about in found.runs.values())] for key in keys]
        sections.append(("Where runs come from", "", page.tabled((["what", *found.runs], cells))))
    names = dict.fromkeys((*found.plans, *found.runs))
    return page.whole(f"Beside each other: {', '.join(names)}", cards, found.differ(), sections, script)
