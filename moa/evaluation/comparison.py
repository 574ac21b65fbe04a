"""Measure rows (dense, plans, their uniform twins) on the same samples, and keep each result as it comes."""

from collections.abc import Sequence
from typing import Any

from moa.evaluation.effective import effective_context
from moa.evaluation.journal import Journal, key
from moa.evaluation.rows import Row, rows_at
from moa.evaluation.samples import Part, Sample
from moa.evaluation.summary import summarise
from moa.evaluation.tasks.task import Task
from moa.hf.environment import environment
from moa.hf.fingerprint import fingerprint
from moa.kernels import backend as backends
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Note, Progress, silent
from moa.runtime.attention import Backends


def compare(
    model: Any, tokenizer: Any, plans: Sequence[tuple[str, Plan]], parts: Sequence[Part],
    *, uniform: bool = True, backend: str | None = None, seed: int = 0, journal: Journal | None = None,
    progress: Progress = silent, note: Note = silent,
) -> dict[str, Any]:  # fmt: skip
    """Measure the dense model, each plan, and the least uniform window that keeps as much, all on the same samples.

    Args:
        model: The dense model; it is left as it was.
        tokenizer: Its tokenizer.
        plans: Pairs of name and plan.
        parts: The samples at each length.
        uniform: Whether each plan gets a uniform twin.
        backend: Back-end of the plans' rows, None for the device's own.
        seed: Seed of the samples.
        journal: Where finished results are kept and looked for.
        progress: Called after each sample.
        note: Called with a line where the journal has such results, but of something else.

    Returns:
        JSON types: `model`, `environment`, `rows` and `effective_context`, as in `docs/evaluation.md`.

    Raises:
        MoaError: Parts cannot be measured, or names are not distinct.
        ModelMismatch: A plan was made for another model.
    """
    names = ["dense", *(name for name, _ in plans)]
    if len(set(names)) < len(names):
        raise MoaError(f"plans must have distinct names other than dense, found {', '.join(names[1:])}")
    for _, plan in plans:
        plan.check(model)
    for part in parts:
        part.check(model)
    backend = backend or backends.pick(model.device)
    Backends(backend, reads=any(plan.reads() for _, plan in plans)).on(model.device)
    journal = journal or Journal(None)
    about = {**environment(model, backend), "seed": seed}
    identity = {"weights": fingerprint(model), "dtype": about["dtype"], "device": model.device.type}
    tables = []
    for part in parts:
        rows, samples = rows_at(plans, part.length, uniform, backend), part.samples(tokenizer, seed)
        tables.append((part, rows, samples, {row.name: [_key(identity, s, row) for s in samples] for row in rows}))
    todo = [
        (part.tasks[sample.task], sample, missing)
        for part, rows, samples, keys in tables
        for i, sample in enumerate(samples)
        if (missing := _missing([(row, keys[row.name][i]) for row in rows], journal))
    ]
    other = sum(journal.has_other(name, **_notes(s, row)) for _, s, keyed in todo for row, name in keyed)
    if other:
        note(
            f"{journal.path}: {other} results of these rows and samples are of another model, plan, seed, back-end or "
            "dtype, or by another version of moa; they stay there, and the rows are measured again"
        )
    done, total = 0, sum(_cost(task, sample, [row for row, _ in keyed]) for task, sample, keyed in todo)
    for task, sample, keyed in todo:
        lacking, where = [row for row, _ in keyed], {row.name: name for row, name in keyed}
        for row, result in task.measure(model, tokenizer, lacking, sample.content):
            journal.put(where[row.name], result, **_notes(sample, row))
        done += _cost(task, sample, lacking)
        progress(done, total, f"{sample.length} tokens, {sample.task} {sample.index + 1}")
    info = ModelInfo.of(model)
    summed = []
    for part, rows, samples, keys in tables:
        results = {row.name: [journal.get(k) for k in keys[row.name]] for row in rows}
        for row in rows:
            plan, mine = row.plan or Plan.dense(info), results[row.name]
            summed.append(summarise(row.name, plan, samples, mine, results["dense"], model.dtype, part.tasks))
    return {
        "model": info.model_dump(mode="json"), "environment": about, "rows": summed,
        "effective_context": effective_context(summed),
    }  # fmt: skip


def _missing(keyed: Sequence[tuple[Row, str]], journal: Journal) -> list[tuple[Row, str]]:
    """Return the rows without a result; of rows with one key, which are one plan by two names, the first."""
    first = {name: row for row, name in reversed(keyed) if journal.get(name) is None}
    return [(row, name) for row, name in keyed if first.get(name) is row]


def _notes(sample: Sample, row: Row) -> dict[str, Any]:
    """Return what a journal says of a result for people, by which results of other settings are recognised too."""
    return {"row": row.name, "task": sample.task, "length": sample.length, "sample": sample.index}


def _key(identity: dict[str, Any], sample: Sample, row: Row) -> str:
    """Return a key made of all that a result depends on, so that a journal never mixes up models, plans or samples."""
    plan = None if row.plan is None else row.plan.fingerprint()
    return key(**identity, sample=repr(sample), plan=plan, backend=row.backend)


def _cost(task: Task, sample: Sample, rows: Sequence[Row]) -> int:
    """Return the tokens to run for these rows and the dense model."""
    return sample.length * (len(rows) + (task.dense_besides and all(row.plan is not None for row in rows)))
