"""`moa serve MODEL --plan PLAN`: start a server with an OpenAI API on a model under a plan."""

from functools import partial
from typing import Annotated

import typer

from moa.cli.common import Model


def command(
    model: Model,
    plan: Annotated[str, typer.Option(help="Plan file or name of a shipped plan.")],
    more: Annotated[
        list[str] | None, typer.Argument(help="After `--`: more options of vLLM's server.", metavar="[-- OPTIONS]")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="vllm, or transformers: one request at a time. Default: vllm where it is installed."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Serve a model under a plan, with an OpenAI API. What is set for the server is printed first.

    Example: moa serve HuggingFaceTB/SmolLM2-135M-Instruct --plan smollm2-135m-instruct-0.25
    """
    import moa

    note = partial(typer.echo, err=True)
    moa.serve_model(model, plan, engine=engine, host=host, port=port, options=more or (), note=note)
