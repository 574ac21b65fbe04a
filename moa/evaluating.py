"""Provide `moa.evaluate_plans`: what plans cost in quality and save in memory, beside the dense model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.longbench.rows import Published
from moa.evaluation.tasks.ruler.documents import Answering
from moa.evaluation.tasks.task import Task
from moa.hf.load import Given, check_options, loaded
from moa.outputs import results, writable
from moa.plans.errors import MoaError, brief
from moa.plans.file import title
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Note, Progress, silent
from moa.plans.replace import replace_json

Source = str | PathLike[str]
"""A file of a plan, or the name of a shipped one."""


def evaluate_plans(
    model: Given, plans: Mapping[str, Plan | Source] | Sequence[Source], *, lengths: Sequence[int] = (1024, 2048),
    tasks: Mapping[str, int] | None = None, data: Mapping[str, str | PathLike[str]] | None = None,
    uniform: bool = True, backend: str | None = None, dtype: str = "auto",
    seed: int = 0, output: str | PathLike[str] | None = None, progress: Progress = silent, note: Note = silent,
) -> dict[str, Any]:  # fmt: skip
    """Measure the dense model, each plan, and the least uniform window that keeps as much, all on the same samples.

    Args:
        model: The model: its name, or what `moa.load_model` returned; it is left as it was.
        plans: Plans, files or names of shipped plans, by the names of their rows; or files and shipped plans alone,
            which name their rows.
        lengths: Lengths to measure at, tokens.
        tasks: Samples of each task per length, by the names in `moa.evaluation.tasks`; None for each one's default.
        data: Local files of tasks that ask about a data set, by the tasks' names; None loads those from the hub.
        uniform: Whether a uniform window stands beside each plan.
        backend: Back-end of the plans, None for the device's own.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        seed: Seed of the samples.
        output: Results to write (.json); each single result is kept beside it (.jsonl), where later runs find it.
        progress: Called after each sample.
        note: Called with a line where single results are there already, but of something else.

    Returns:
        JSON types: `model`, `environment`, `rows` and `effective_context`, as in `docs/evaluation.md`.

    Raises:
        MoaError: Something cannot be measured, or a file must not be replaced.
        ModelMismatch: A plan was made for another model.
    """
    counts = {name: task.default for name, task in TASKS.items()} if tasks is None else tasks
    parts = [Part(n, counts, _with_data(data or {})) for n in lengths]
    named, files = named_plans(plans)
    path = None if output is None else Path(output)
    if path is not None:
        writable(path, "result of `moa eval`", results("environment", "rows"))
        if path.suffix == ".jsonl":
            raise MoaError(f"output must not end in .jsonl, where single results go; found {path}")
    journal = Journal(None if path is None else path.with_suffix(".jsonl"))
    shape = check_options(model, files, backend=backend)
    for part in parts:
        part.check(shape)
    network, tokenizer = loaded(model, dtype=dtype)
    found = compare(
        network, tokenizer, named, parts,
        uniform=uniform, backend=backend, seed=seed, journal=journal, progress=progress, note=note,
    )  # fmt: skip
    if path is not None:
        replace_json(path, found)
    return found


def _with_data(data: Mapping[str, str | PathLike[str]]) -> dict[str, Task]:
    """Return the tasks, those of `data` with their files.

    Raises:
        MoaError: A task takes no file, or there is none.
    """
    takes = [name for name, task in TASKS.items() if isinstance(task, Answering | Published)]
    for name, path in data.items():
        if name not in takes:
            raise MoaError(f"task data is for {', '.join(takes)}, found {brief(name)}")
        if not Path(path).is_file():
            raise MoaError(f"no data file at {path}")
    return {**TASKS, **{name: replace(TASKS[name], data=str(path)) for name, path in data.items()}}  # type: ignore[call-arg]


def named_plans(
    plans: Mapping[str, Plan | Source] | Sequence[Source],
) -> tuple[list[tuple[str, Plan]], dict[str, ModelInfo]]:
    """Return the plans by the names of their rows, and the models that they are for by the names of their files.

    Raises:
        PlanError: A file is damaged, or not there.
    """
    given: Mapping[str, Plan | Source] = plans if isinstance(plans, Mapping) else _titled(plans)
    named = [(name, plan if isinstance(plan, Plan) else Plan.load(plan)) for name, plan in given.items()]
    return named, {str(given[n]) if not isinstance(given[n], Plan) else n: plan.model for n, plan in named}


def _titled(plans: Sequence[Source]) -> dict[str, Source]:
    """Return the plans by their names, all numbered where two are equal or one is `dense`."""
    names = [title(plan) for plan in plans]
    if len({"dense", *names}) <= len(names):
        names = [f"{i} {name}" for i, name in enumerate(names, 1)]
    return dict(zip(names, plans, strict=True))
