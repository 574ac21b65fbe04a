"""`moa profile MODEL -o PROFILE.safetensors`: measure how much harm each cut of each KV head does."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from moa.cli.common import Dtype, Model, Quiet
from moa.profiler.calibration import ESTIMATORS, LABELS, LOSSES, Labels, Loss
from moa.profiler.sources import DEFAULT, SOURCES

if TYPE_CHECKING:
    from moa.plans.patterns import Variant

MOVED = (
    "--sinks 64 --keydiff 64 is now --variant sink_window:64 --variant keydiff_window:64; the next release drops the "
    "old options"
)


def command(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Profile to write (.safetensors).")],
    lengths: Annotated[
        str, typer.Option(help="Lengths to measure, in tokens, separated by commas.")
    ] = "1024,2048,4096",
    samples: Annotated[int, typer.Option(help="Number of samples per source and length.")] = 4,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Source of calibration text: {', '.join(SOURCES)}. Default: {', '.join(DEFAULT)}. Repeatable."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Your own documents as calibration text: a .jsonl, .json, .txt or .parquet file, or hub:NAME."
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(help="PATTERN:SINK to measure, such as sink_window:64. Default: every pattern at 64. Repeatable."),
    ] = None,
    sinks: Annotated[str | None, typer.Option(hidden=True)] = None,
    keydiff: Annotated[str | None, typer.Option(hidden=True)] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help=f"Estimator of harm: {', '.join(ESTIMATORS)}. Default: per source."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help=f"Labels of the loss: {', '.join(LABELS)}. Default: per source.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help=f"Loss: {', '.join(LOSSES)}; kl only with --around. Default: per source.")
    ] = None,
    chat: Annotated[bool, typer.Option(help="Render tasks with the chat template if the tokenizer has one.")] = True,
    around: Annotated[
        str | None,
        typer.Option(help="Plan that the model runs under while it is measured. Default: none, the model is dense."),
    ] = None,
    retrieval_score: Annotated[
        bool,
        typer.Option("--retrieval-score", help="Also measure how often each head copies the fact that is asked for."),
    ] = False,
    reads: Annotated[
        bool,
        typer.Option(
            "--reads", help="Also measure the harm of reading little of what is kept, for moa search --max-read."
        ),
    ] = False,
    add: Annotated[Path | None, typer.Option(help="Earlier profile, whose samples are added to the new ones.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the texts and the sampled labels.")] = 0,
    dtype: Dtype = "auto",
    device_map: Annotated[str | None, typer.Option(help="`auto` spreads the model over several devices.")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure the harm of every cut of every KV head on calibration text.

    If it is stopped, run the same command again: it continues after the last finished sample. Under `torchrun` the
    processes share the samples.

    Example: moa profile HuggingFaceTB/SmolLM2-135M-Instruct -o profile.safetensors --lengths 1024,2048
    """
    import moa
    from moa.cli.common import Bar, messages, numbers

    console = messages(quiet or int(os.environ.get("RANK", "0")) > 0)  # of torchrun's processes only the first prints
    old = sinks is not None or keydiff is not None
    with Bar("profiling", console, MOVED if old else "") as bar:
        profile = moa.profile_model(
            model, output, lengths=numbers("lengths", lengths), samples=samples, sources=source, data=data,
            variants=_variants(variant, sinks, keydiff), estimator=estimator,
            labels=cast("Labels | None", labels), loss=cast("Loss | None", loss), chat=chat, around=around,
            retrieval_score=retrieval_score, reads=reads, add=add, seed=seed, dtype=dtype, device_map=device_map,
            progress=bar, note=bar.note,
        )  # fmt: skip
    if profile is not None:
        after = "" if loss == "kl" else f"; next: moa search {output} -o plan.yaml --max-density 0.5"
        console.print(f"wrote {output}{after}")


def _variants(texts: list[str] | None, sinks: str | None, keydiff: str | None) -> "list[Variant] | None":
    """Return the variants to measure, from PATTERN:SINK or the last release's options; None if neither is given."""
    from moa.cli.common import numbers
    from moa.plans.errors import MoaError, brief
    from moa.plans.patterns import PATTERNS

    if sinks is not None or keydiff is not None:
        if texts:
            raise MoaError("--variant replaces --sinks and --keydiff: give one or the other")
        old = {"sink_window": "64" if sinks is None else sinks, "keydiff_window": "64" if keydiff is None else keydiff}
        return [(name, size) for name, sizes in old.items() for size in (numbers(name, sizes) if sizes else ())]
    found = []
    for text in texts or ():
        name, _, size = text.partition(":")
        if name not in PATTERNS or not size.isdecimal():
            raise MoaError(f"a variant is PATTERN:SINK, of {', '.join(PATTERNS)}; found {brief(text)}")
        found.append((name, numbers("sinks", size)[0]))
    return found or None
