"""`moa profile MODEL -o PROFILE.safetensors`: measure how much harm each cut of each KV head does."""

import os
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

    import moa
    from moa.cli.common import Bar, choice, numbers

    console = Console(stderr=True, quiet=int(os.environ.get("RANK", "0")) > 0)  # of torchrun, the first one speaks
    with Bar("profiling", console) as bar:
        profile = moa.profile_model(
            model, output, lengths=numbers("lengths", lengths), samples=samples, sources=source, data=data,
            sinks=numbers("sinks", sinks), keydiff=numbers("keydiff", keydiff) if keydiff else (), estimator=estimator,
            labels=choice("labels", labels, ("sampled", "greedy", "given")),
            loss=choice("loss", loss, ("nll", "margin", "kl")), chat=chat, around=around,
            retrieval_score=retrieval_score, add=add, seed=seed, dtype=dtype, device_map=device_map, progress=bar,
            note=console.print,
        )  # fmt: skip
    if profile is not None:
        after = "" if loss == "kl" else f"; next: moa search {output} -o plan.yaml --max-density 0.5"
        console.print(f"wrote {output}{after}", soft_wrap=True)
