"""Provide `moa.profile_model`, which measures how much harm each cut of each KV head does."""

import os
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from itertools import accumulate
from math import ceil
from os import PathLike
from pathlib import Path
from typing import Any

from moa.bench import timing
from moa.bench.heap import return_freed
from moa.hf.load import Given, check_options, loaded
from moa.outputs import writable
from moa.plans.errors import MoaError, brief
from moa.plans.model import ModelInfo
from moa.plans.patterns import Variant
from moa.plans.plan import Plan
from moa.plans.progress import Note, Progress, silent
from moa.profiler.calibration import Labels, Loss
from moa.profiler.collect import check_run, collect, sample_file
from moa.profiler.documents import document_source
from moa.profiler.estimate import Pace, peak_bytes, warm_up
from moa.profiler.profile import Profile
from moa.profiler.settings import Settings, Task, every, tasks
from moa.profiler.sources import DEFAULT, SOURCES


def profile_model(
    model: Given, output: str | PathLike[str], *, lengths: Sequence[int] = (1024, 2048, 4096), samples: int = 4,
    sources: Sequence[str] | None = None, data: str | None = None,
    variants: Sequence[Variant] | None = None, estimator: str | None = None, labels: Labels | None = None,
    loss: Loss | None = None, chat: bool = True, around: Plan | str | PathLike[str] | None = None,
    retrieval_score: bool = False, reads: bool = False, add: str | PathLike[str] | None = None, seed: int = 0,
    dtype: str = "auto", device_map: Any = None, progress: Progress = silent, note: Note = silent,
) -> Profile | None:  # fmt: skip
    """Measure the harm of every cut of every KV head on calibration text.

    If it is stopped, the same call continues after the last finished sample. Under `torchrun` the processes share the
    samples. From then on the process returns large freed memory to the system (`moa.bench.heap.return_freed`).

    Args:
        model: The model: its name, or what `moa.load_model` returned.
        output: Profile to write (.safetensors).
        lengths: Lengths to measure, tokens.
        samples: Samples per source and length.
        sources: Names of built-in sources; None for the default ones, or none where there is `data`.
        data: Documents as one more source: .jsonl, .txt, .parquet or hub:NAME.
        variants: What to measure: patterns and sizes of sinks, multiples of 64; None for every pattern at 64.
        estimator: Estimator of every source; None for each source's own, as for `labels` and `loss`.
        labels: sampled, greedy or given.
        loss: nll or margin; with `around` also kl.
        chat: Whether tasks are rendered with the chat template, where there is one.
        around: Plan that the model runs under while it is measured; None for the dense model.
        retrieval_score: Whether copy scores are measured too.
        reads: Whether the harm of reading little of what is kept is measured too.
        add: Earlier profile, whose samples join the new ones.
        seed: Seed of texts and sampled labels.
        dtype: Dtype to load a named model in, as for `moa.load_model`; so too `device_map`.
        device_map: `auto` spreads the model over devices.
        progress: Called after each sample with the tokens that are done.
        note: Called with lines about the work ahead, and about sources that say nothing.

    Returns:
        The profile; None in all processes of `torchrun` but the first.

    Raises:
        MoaError: Something cannot be measured, or a file cannot be read or must not be replaced.
    """
    path = Path(output)
    names = sources if sources is not None else ([] if data else list(DEFAULT))
    if unknown := [name for name in names if name not in SOURCES]:
        raise MoaError(f"source must be one of {', '.join(SOURCES)}, found {brief(unknown[0])}")
    rank, world, barrier = _processes(own_device=device_map is None)
    writable(path, "profile", Profile.load)
    plan = around if around is None or isinstance(around, Plan) else Plan.load(around)
    earlier = None if add is None else Profile.load(Path(add))
    given = {str(file): found.model for file, found in ((around, plan), (add, earlier)) if found is not None}
    checked = check_options(model, given)
    measured = every(ModelInfo.of(checked)) if variants is None else tuple(variants)
    settings = Settings(tuple(lengths), samples, seed, measured, estimator, labels, loss, chat, retrieval_score, reads)
    settings.check(checked)
    return_freed()
    network, tokenizer = loaded(model, dtype=dtype, device_map=device_map)
    chosen = [SOURCES[name] for name in names]
    if data:
        chosen.append(document_source(data, tokenizer, settings.lengths, chat))
    check_run(network, tokenizer, settings, chosen, path, plan, earlier)
    todo = tasks(settings, chosen)
    mine = todo[rank::world]
    finished = {task for task in todo if sample_file(path, task).exists()}
    if rank == 0:
        for line in _ahead(network, settings, todo, finished, plan):
            note(line)
    done, tokens = accumulate(task.length for task in mine), sum(task.length for task in mine)
    pace = Pace(task for task in mine if task not in finished)

    def tell(task: Task, measured: bool) -> None:
        progress(next(done), tokens, task.key)
        left = pace.after(task) if measured else None
        if left is not None and rank == 0:
            note(f"about {left / 60:.1f} minutes left, by samples of {task.length:,} tokens")

    profile = collect(
        network, tokenizer, settings, chosen, path, plan=plan, add=earlier, rank=rank, world=world, barrier=barrier,
        progress=tell,
    )  # fmt: skip
    if profile is not None:
        for cut, table in profile.cuts.items():
            if not table.any():
                note(f"nothing is known from {cut[0]} at {cut[1]} tokens: the model gets no answer right")
    return profile


def _ahead(
    network: Any, settings: Settings, todo: Sequence[Task], finished: Collection[Task], plan: Plan | None
) -> list[str]:
    """Return lines about the work ahead and its memory, and the sources measured at one length only."""
    warm_up(network, settings, plan)
    memory, used = 0, None
    if network.device.type == "cpu":  # on a CPU the whole process counts: what loading took, and what it uses now
        memory = timing.peak_bytes(network.device)
        timing.reset_peak(network.device)
        used = timing.peak_bytes(network.device)
    tenths = ceil(max(memory, peak_bytes(network, max(settings.lengths), used)) / 2**30 * 10)
    count = f"{len(todo)} samples" + (f", {len(finished)} of them finished" if finished else "")
    lines = [f"{count}; about {tenths / 10:.1f} GiB of memory"]
    longer = {task.source.name for task in todo if task.length > min(settings.lengths)}
    once = [name for name in dict.fromkeys(task.source.name for task in todo) if name not in longer]
    if once and len(settings.lengths) > 1:
        lines.append(f"{', '.join(once)}: measured at the shortest length only, {min(settings.lengths)} tokens")
    return lines


def _processes(*, own_device: bool) -> tuple[int, int, Callable[[], None]]:
    """Return rank, number of processes and barrier, as torchrun set them up; with `own_device` each takes a GPU."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1, lambda: None
    import torch
    import torch.distributed as dist

    if own_device and torch.cuda.is_available():  # processes that see one device each share its number
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group(
        "gloo", timeout=timedelta(days=30)
    )  # shares are fixed, so a process that has finished waits for the rest
    return dist.get_rank(), world, dist.barrier
