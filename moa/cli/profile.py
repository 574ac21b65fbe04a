"""`moa profile MODEL -o PROFILE.safetensors`: measure how much harm each cut of each KV head does."""

import os
from collections.abc import Callable
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import typer

SOURCES = "text, facts, pairs, lines"


def command(
    model: Annotated[str, typer.Argument(help="Hub id, local folder, or .gguf file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Profile to write (.safetensors).")],
    lengths: Annotated[str, typer.Option(help="Lengths to measure, tokens.")] = "1024,2048,4096",
    samples: Annotated[int, typer.Option(help="Samples per source and length.")] = 4,
    source: Annotated[list[str] | None, typer.Option(help=f"Repeatable: {SOURCES}. Default all but lines.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Your documents as one more source: .jsonl, .txt, .parquet or hub:NAME."),
    ] = None,
    sinks: Annotated[str, typer.Option(help="Sizes to measure of sinks of first keys, multiples of 64.")] = "64",
    keydiff: Annotated[
        str, typer.Option(help="Sizes to measure of sinks of the keys most unlike others; '' for none.")
    ] = "64",
    estimator: Annotated[str | None, typer.Option(help="fisher, effect, first-order, first-order-abs, mass.")] = None,
    labels: Annotated[str | None, typer.Option(help="sampled, greedy, given. Default: per source.")] = None,
    loss: Annotated[str | None, typer.Option(help="nll, margin; with --around also kl. Default: per source.")] = None,
    chat: Annotated[bool, typer.Option(help="Render tasks with the chat template when there is one.")] = True,
    around: Annotated[
        str | None, typer.Option(help="Plan the model runs under while it is measured. Default: dense.")
    ] = None,
    retrieval_score: Annotated[
        bool, typer.Option("--retrieval-score", help="Also how often heads copy the fact that is asked for.")
    ] = False,
    add: Annotated[Path | None, typer.Option(help="Earlier profile, whose samples join the new ones.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of texts and sampled labels.")] = 0,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    device_map: Annotated[str | None, typer.Option(help="`auto` spreads the model over devices.")] = None,
) -> None:
    """Measure the harm of every cut of every KV head on calibration text.

    Stopped at any moment, the same command goes on from the last finished sample. Under `torchrun` the processes share
    the samples.
    """
    from rich.console import Console

    from moa.cli.common import Bar, choice, numbers
    from moa.load import check_options, load_model
    from moa.outputs import writable
    from moa.plans.plan import Plan
    from moa.profiler.calibration import DEFAULT
    from moa.profiler.calibration import SOURCES as KNOWN
    from moa.profiler.collect import check_run, collect, sample_file
    from moa.profiler.documents import document_source
    from moa.profiler.estimate import peak_bytes, seconds
    from moa.profiler.profile import Profile
    from moa.profiler.settings import Settings, tasks

    names = source if source is not None else ([] if data else list(DEFAULT))
    settings = Settings(
        numbers("lengths", lengths), samples, seed, numbers("sinks", sinks),
        numbers("keydiff", keydiff) if keydiff else (), estimator,
        choice("labels", labels, ("sampled", "greedy", "given")), choice("loss", loss, ("nll", "margin", "kl")), chat,
        retrieval_score,
    )  # fmt: skip
    sources = [KNOWN[choice("source", name, tuple(KNOWN)) or name] for name in names]
    rank, world, barrier = _processes(own_device=device_map is None)
    console = Console(stderr=True, quiet=rank > 0)
    writable(output, "profile", Profile.load)
    plan = None if around is None else Plan.load(around)
    earlier = None if add is None else Profile.load(add)
    given = {str(file): found.model for file, found in ((around, plan), (add, earlier)) if found is not None}
    settings.check(check_options(model, given))
    network, tokenizer = load_model(model, dtype=dtype, device_map=device_map)
    if data:
        sources.append(document_source(data, tokenizer, settings.lengths, chat))
    check_run(network, tokenizer, settings, sources, output, plan, earlier)
    todo = tasks(settings, sources)
    mine = todo[rank::world]
    if rank == 0:
        finished = {task for task in todo if sample_file(output, task).exists()}
        minutes = seconds(network, tokenizer, settings, [t for t in mine if t not in finished], plan) / 60
        memory = peak_bytes(network, max(settings.lengths)) / 2**30
        count = f"{len(todo)} samples" + (f", {len(finished)} of them finished" if finished else "")
        console.print(f"{count}, about {minutes:.1f} minutes and {memory:.1f} GiB of memory")
        longer = {task.source.name for task in todo if task.length > min(settings.lengths)}
        once = [source.name for source in sources if source.name not in longer]
        if once and len(settings.lengths) > 1:
            console.print(f"{', '.join(once)}: measured at the shortest length only, {min(settings.lengths)} tokens")
    done = accumulate(task.length for task in mine)
    tokens = sum(task.length for task in mine)
    with Bar("profiling", console) as bar:
        profile = collect(
            network, tokenizer, settings, sources, output, plan=plan, add=earlier,
            rank=rank, world=world, barrier=barrier, progress=lambda task, _measured: bar(next(done), tokens, task.key),
        )  # fmt: skip
    if profile is not None:
        for cut, table in profile.cuts.items():
            if not table.any():
                console.print(f"nothing is known from {cut[0]} at {cut[1]} tokens: the model gets no answer right")
        after = "" if loss == "kl" else f"; next: moa search {output} -o plan.yaml --max-density 0.5"
        console.print(f"wrote {output}{after}", soft_wrap=True)


def _processes(*, own_device: bool) -> tuple[int, int, Callable[[], None]]:
    """Rank, number of processes and their barrier, as torchrun set them up; with `own_device` each takes a GPU."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1, lambda: None
    import torch
    import torch.distributed as dist

    if own_device and torch.cuda.is_available():  # processes that see one device each share its number
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=timedelta(days=30))  # shares are fixed: who is done waits for the others
    return dist.get_rank(), world, dist.barrier
