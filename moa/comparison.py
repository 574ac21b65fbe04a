"""Rows (dense, plans, their uniform twins) measured on the same samples, each result kept as it comes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from moa.environment import environment
from moa.evaluate import Row, ask, divergence, rows_at, windows
from moa.haystack import FORMATS, Format, Haystack, haystack
from moa.journal import Journal, key
from moa.kernels import backend as backends
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.fingerprint import fingerprint
from moa.profiler.settings import check_length
from moa.summary import summarise

NEEDLES = {"single": 1, "four": 4}
"""Needles in a context, and so questions about it, by task."""

Progress = Callable[[int, int, str], None]
"""(tokens done, tokens in all, what was just done)."""


@dataclass(frozen=True)
class Part:
    """How much is measured at one length.

    Attributes:
        length: Tokens.
        single: Contexts with one needle and one question.
        four: Contexts with four needles and a question about each.
        windows: Windows of held-out text for perplexity and KL.
        formats: Kinds of needles.
    """

    length: int
    single: int = 20
    four: int = 5
    windows: int = 2
    formats: tuple[Format, ...] = FORMATS

    def check(self, model: Any) -> None:
        """Refuse what cannot be measured.

        Raises:
            MoaError: Naming the rule, the value and the valid choices.
        """
        check_length(model, self.length)
        counts = self.single, self.four, self.windows
        if min(counts) < 0 or not any(counts):
            raise MoaError(
                "single-needle contexts, four-needle contexts and windows must be 0 or more, and one of them at least "
                f"1; found {counts[0]}, {counts[1]} and {counts[2]}"
            )


@dataclass(frozen=True)
class Sample:
    """One thing measured for every row: a haystack with its questions, or a window of text.

    Attributes:
        task: single, four or text.
        length: Tokens.
        index: Which of its task and length.
        content: The haystack, or the window's token ids.
    """

    task: str
    length: int
    index: int
    content: Haystack | list[int]

    def measure(self, model: Any, tokenizer: Any, rows: Sequence[Row]) -> Iterator[tuple[Row, Any]]:
        """Each row's result as it comes."""
        if isinstance(self.content, Haystack):
            for row in rows:
                yield row, ask(model, tokenizer, row, self.content)
        else:
            found = divergence(model, rows, self.content)
            yield from ((row, found[row.name]) for row in rows)

    def cost(self, rows: Sequence[Row]) -> int:
        """Tokens to run for these rows; a window's KL needs the dense model besides."""
        dense_besides = self.task == "text" and all(row.plan is not None for row in rows)
        return self.length * (len(rows) + dense_besides)


def compare(
    model: Any, tokenizer: Any, plans: Sequence[tuple[str, Plan]], parts: Sequence[Part],
    *, uniform: bool = True, backend: str | None = None, seed: int = 0, journal: Journal | None = None,
    progress: Progress = lambda _done, _total, _what: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the dense model, each plan, and the least uniform window that keeps as much, all on the same samples.

    Args:
        model: The dense model; it is left as it was.
        tokenizer: Its tokenizer.
        plans: (name, plan) of each.
        parts: How much at each length.
        uniform: Whether each plan gets a uniform twin.
        backend: Back-end of the plans' rows, None for the device's own.
        seed: Seed of the needles.
        journal: Where finished results are kept and looked for.
        progress: Called after each sample.

    Returns:
        JSON types: `model`, `environment` and `rows`, as in `docs/evaluation.md`.

    Raises:
        MoaError: Parts that cannot be measured, or names that are not distinct.
        ModelMismatch: A plan made for another model.
    """
    names = ["dense", *(name for name, _ in plans)]
    if len(set(names)) < len(names):
        raise MoaError(f"plans must have distinct names other than dense, found {', '.join(names[1:])}")
    for _, plan in plans:
        plan.check(model)
    for part in parts:
        part.check(model)
    backend = backend or backends.pick(model.device)
    backends.load(backend)
    journal = journal or Journal(None)
    about = {**environment(model, backend), "seed": seed}
    rows = {part: rows_at(plans, part.length, uniform, backend) for part in parts}
    samples = {part: _samples(tokenizer, part, seed) for part in parts}
    identity = {"weights": fingerprint(model), "dtype": about["dtype"], "device": model.device.type}
    keys = {
        (part, row.name): [_key(identity, sample, row) for sample in samples[part]]
        for part in parts
        for row in rows[part]
    }
    todo = [
        (part, i, lacking)
        for part in parts
        for i in range(len(samples[part]))
        if (lacking := [row for row in rows[part] if journal.get(keys[part, row.name][i]) is None])
    ]
    done, total = 0, sum(samples[part][i].cost(lacking) for part, i, lacking in todo)
    for part, i, lacking in todo:
        sample = samples[part][i]
        for row, result in sample.measure(model, tokenizer, lacking):
            notes = {"row": row.name, "task": sample.task, "length": sample.length, "sample": sample.index}
            journal.put(keys[part, row.name][i], result, **notes)
        done += sample.cost(lacking)
        progress(done, total, f"{sample.length} tokens, {sample.task} {sample.index + 1}")
    info = ModelInfo.of(model)
    summed = []
    for part in parts:
        results = {row.name: [journal.get(k) for k in keys[part, row.name]] for row in rows[part]}
        for row in rows[part]:
            plan = row.plan or Plan.dense(info)
            summed.append(summarise(row.name, plan, samples[part], results[row.name], results["dense"], model.dtype))
    return {"model": info.model_dump(mode="json"), "environment": about, "rows": summed}


def _samples(tokenizer: Any, part: Part, seed: int) -> list[Sample]:
    n, samples = part.length, []
    for task, count in (("single", part.single), ("four", part.four)):
        hays = (haystack(tokenizer, n, NEEDLES[task], i, count, seed, part.formats) for i in range(count))
        samples += [Sample(task, n, i, hay) for i, hay in enumerate(hays)]
    texts = windows(tokenizer, n, part.windows)
    if len(texts) < part.windows:
        raise MoaError(f"held-out text gives {len(texts)} windows of {n} tokens, {part.windows} were asked for")
    return samples + [Sample("text", n, i, ids) for i, ids in enumerate(texts)]


def _key(identity: dict[str, Any], sample: Sample, row: Row) -> str:
    """Names a result by all it depends on, so that a journal never answers for another model, plan or sample."""
    plan = None if row.plan is None else row.plan.fingerprint()
    return key(**identity, sample=repr(sample), plan=plan, backend=row.backend)
