"""Time decode steps and prefills of a few plans on this device, and fit the costs that predict any plan's time."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from moa.bench import timing
from moa.bench.filling import Context, held_out
from moa.evaluation.journal import Journal, key
from moa.hf.environment import environment
from moa.hf.load import Given, check_options, loaded
from moa.outputs import writable
from moa.plans.errors import MoaError, ModelMismatch
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Progress, silent
from moa.plans.replace import replace_json
from moa.runtime.attention import Backends
from moa.runtime.variant import Variant
from moa.search.cost import PLACE, Costs, Work
from moa.search.fit import Run, measure


def measure_costs(
    model: Given, *, lengths: Sequence[int] = (1024, 4096), batches: Sequence[int] = (1, 4), rounds: int = 8,
    reads: bool = False, backend: str | None = None, dtype: str = "auto", output: str | PathLike[str] | None = None,
    progress: Progress = silent,
) -> Costs:  # fmt: skip
    """Time the model under a few plans and fit costs, for budgets in milliseconds.

    If it is stopped, the same call with the same `output` goes on with the runs that are still to come.

    Args:
        model: The model: its name, or what `moa.load_model` returned.
        lengths: Two or more lengths to measure at, in tokens.
        batches: Batch sizes of decode steps; a prefill has one sequence.
        rounds: Largest number of rounds in which everything is measured in turn; fewer are run once medians are
            precise enough (`moa.search.fit.in_turn`).
        reads: Whether to time decode steps of plans that read less than they keep, too, so that a search may choose
            reads within a budget of milliseconds.
        backend: Name of a back-end, None for the device's own.
        dtype: Dtype to load a named model in, as for `moa.load_model`.
        output: Costs to write (.json). What was timed so far is beside it, in a file that ends in `.runs.jsonl`, until
            all is.
        progress: Called after each measurement with the number done, the number in all, and the last one's name.

    Raises:
        MoaError: Lengths, batches or rounds are out of range, or a file must not be replaced.
        Unsupported: The back-end cannot run here, or the model takes no rules.
    """
    if min(*lengths, *batches, rounds) < 1 or len(set(lengths)) < 2:
        raise MoaError("lengths, batches and rounds must be 1 or more, and lengths two or more")
    path = None if output is None else Path(output)
    if path is not None:
        writable(path, "file of costs", Costs.read)
    check_options(model, {}, lengths=lengths, backend=backend)
    pair = loaded(model, dtype=dtype)
    network, _ = pair
    if reads:
        Backends(backend, reads=True).on(network.device)
    works = [Work("decode", n, batch) for n in lengths for batch in batches] + [Work("prefill", n) for n in lengths]
    here = environment(network, backend)
    journal = Journal(None if path is None else path.with_suffix(".runs.jsonl"))
    costs = measure(
        ModelInfo.of(network), works, kept(runner(pair, backend), journal, here),
        environment=here, rounds=rounds, reads=reads, progress=progress,
    )  # fmt: skip
    if path is not None:
        replace_json(path, costs.model_dump(mode="json"))
        path.with_suffix(".runs.jsonl").unlink(missing_ok=True)  # whoever measures again wants new figures
    return costs


def kept(run: Run, journal: Journal, here: Mapping[str, str | int]) -> Run:
    """Return `run` with its results kept in a journal, which gives those of a call that was stopped in `here`."""
    turns = Counter[str]()

    def again(plan: Plan, work: Work) -> Sequence[float]:
        what = key(plan=plan.to_dict(), work=asdict(work), environment=dict(here))
        turns[what] += 1
        name = f"{what} {turns[what]}"
        if journal.get(name) is None:
            journal.put(name, list(run(plan, work)), work=str(work))
        found: Sequence[float] = journal.get(name)
        return found

    return again


def runner(model: tuple[Any, Any], backend: str | None) -> Callable[[Plan, Work], list[float]]:
    """Return a function that times a plan on a model: several decode steps, or one prefill, in milliseconds.

    Decode steps are on random keys; where the plan reads less than it keeps, on those of a text.
    """
    network, tokenizer = model
    contexts: list[Context] = []  # the longest so far

    def context(length: int) -> Context:
        if not contexts or contexts[0].ids.shape[1] < length:
            contexts[:] = [Context.read(network, held_out(tokenizer, length).to(network.device))]
        return contexts[0]

    def run(plan: Plan, work: Work) -> list[float]:
        variant = Variant(plan, backend=backend)
        if work.kind == "decode":
            text = context(work.length + timing.STEPS + 1) if plan.reads() else None
            seconds = timing.decode(network, variant, work.length, work.batch, context=text)
        else:
            vocabulary = network.get_input_embeddings().num_embeddings
            ids = torch.randint(vocabulary, (work.batch, work.length), device=network.device)
            seconds = timing.prefill(network, variant, ids)
        return [1e3 * s for s in seconds]

    return run


def runner_of(costs: Costs, model: tuple[Any, Any]) -> Callable[[Plan, Work], list[float]]:
    """Return the `runner` of the model that `costs` belong to, in the environment they were measured in."""
    backend, network = str(costs.environment["backend"]), model[0]
    costs.check(ModelInfo.of(network))
    check_place(costs, environment(network, backend))
    return runner(model, backend)


def check_place(costs: Costs, here: dict[str, str | int]) -> None:
    """Raise ModelMismatch unless costs were measured in the environment `here`."""
    differences = [f"{name}: {costs.environment.get(name)} against {here[name]}" for name in PLACE
                   if costs.environment.get(name) != here[name]]  # fmt: skip
    if differences:
        raise ModelMismatch(f"costs measured elsewhere (costs against here): {'; '.join(differences)}")
