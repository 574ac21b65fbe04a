"""`moa generate MODEL --plan PLAN --prompt-file FILE`: stream text under a plan, and report its time and memory."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from moa.cli.common import Backend, Dtype, Json, Model


def command(
    model: Model,
    plan: Annotated[str, typer.Option(help="Plan file or name of a shipped plan.")],
    prompt_file: Annotated[Path, typer.Option(help="File with the prompt, UTF-8.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Pass the prompt as a user's turn, by the chat template.")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="Largest number of tokens to generate.", min=1)] = 256,
    backend: Backend = None,
    dtype: Dtype = "auto",
    json_: Json = False,
) -> None:
    """Generate greedily under a plan. The last line gives the speed and the memory of keys and values.

    Example: moa generate HuggingFaceTB/SmolLM2-135M-Instruct --plan smollm2-135m-instruct-0.25 --prompt-file README.md
    """
    from dataclasses import asdict

    import moa
    from moa.cli.common import print_json
    from moa.plans.progress import silent

    found = moa.generate_text(
        model, plan, prompt_file, chat=chat, max_new_tokens=max_new_tokens, backend=backend, dtype=dtype,
        stream=silent if json_ else partial(print, end="", flush=True), note=partial(typer.echo, err=True),
    )  # fmt: skip
    if json_:
        print_json(asdict(found))
        return
    prefill, rest = found.seconds
    rate = f"{found.steps / rest:.1f} tokens/s" if found.steps else "no more tokens"
    typer.echo(
        f"\nprompt of {found.prompt:,} tokens in {prefill:.2f} s, then {rate}; KV cache {found.kv_bytes / 2**20:.1f} "
        f"MiB at {found.length:,} tokens, dense {found.dense_kv_bytes / 2**20:.1f} MiB"
    )
