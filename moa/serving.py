"""Provide `moa.serve_model`, which starts a server on a model under a plan: vLLM's, or transformers' own."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from os import PathLike
from pathlib import Path

import torch

from moa.hf import server
from moa.hf.load import load_config
from moa.plans.errors import MoaError, Unsupported, brief
from moa.plans.plan import Plan
from moa.plans.progress import Note, silent
from moa.plans.span import FIRST_KEYS
from moa.runtime.applied import apply

ENGINES = ("vllm", "transformers")

CHUNK = 256
"""Tokens of a step under a plan: the blocks of whole chunks are held while a prompt is read."""
CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"


def serve_model(
    model: str, plan: str | PathLike[str], *, engine: str | None = None, host: str = "127.0.0.1", port: int = 8000,
    options: Sequence[str] = (), note: Note = silent,
) -> None:  # fmt: skip
    """Serve a model under a plan, by an OpenAI API, until the process is interrupted.

    vLLM's server takes the place of this process, so signals reach it and its exit code is the process's.

    Args:
        model: Hub id or local folder.
        plan: A plan file, or the name of a shipped plan.
        engine: What serves: "vllm", with the plugin moa-vllm, or "transformers", one request at a time; None takes
            vLLM where both it and the plugin are installed.
        host, port: Where to listen.
        options: More options of vLLM's server.
        note: Called with lines about what is set and why.

    Raises:
        MoaError: The engine is unknown or not installed, or takes no options.
        ModelMismatch: The plan was made for another model.
        Unsupported: The plan reads less than it keeps, which vLLM cannot.
    """
    if engine not in (None, *ENGINES):
        raise MoaError(f"engine must be one of {', '.join(ENGINES)}, found {brief(engine)}")
    loaded = Plan.load(plan)
    loaded.check(load_config(model))
    missing = [name for name in ("vllm", "moa_vllm") if find_spec(name) is None]
    if engine is None:
        engine = "transformers" if missing else "vllm"
        note(f"engine: {engine}" + (f" ({' and '.join(missing)} not installed)" if missing else ""))
    if engine == "transformers":
        if options:
            raise MoaError(f"further options are vLLM's, found {' '.join(options)}")
        note("one request at a time; further ones wait")
        server.serve(model, lambda found: apply(found, loaded), host=host, port=port)
        return
    if any(map(loaded.reads, loaded.groups)):
        raise Unsupported(
            "vLLM under a plan with reads: it builds block tables before queries exist; take transformers"
        )
    if missing:
        raise MoaError(f"engine vllm needs {' and '.join(missing)}: docs/serve.md says how to install them")
    here = ["--host", host, "--port", str(port), *options]
    command = vllm_command(model, loaded, plan, here, note)
    os.execve(command[0], command, os.environ | cpu_cache(os.environ, note))


def vllm_command(
    model: str, plan: Plan, path: str | PathLike[str], options: Sequence[str], note: Note
) -> list[str]:  # fmt: skip
    """Return the command that starts vLLM's server under a plan; what is set is told to `note`.

    Args:
        model: Hub id or local folder.
        plan: The plan.
        path: Its file or name.
        options: Options that are given; defaults stand back behind them.
        note: Called with a line per default.
    """
    where = str(Path(path).resolve()) if Path(path).is_file() else str(path)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--additional-config", json.dumps({"moa_plan": where})]
    given = {option.partition("=")[0] for option in options}
    if "--max-num-batched-tokens" not in given:
        command += ["--max-num-batched-tokens", str(CHUNK)]
        note(f"--max-num-batched-tokens {CHUNK}: longer chunks of a prompt hold blocks that the plan would free")
    moves = any(held != FIRST_KEYS for layer in plan.groups for held in plan.holds(layer))
    if moves and not given & {"--enable-prefix-caching", "--no-enable-prefix-caching"}:
        command += ["--no-enable-prefix-caching"]
        note("--no-enable-prefix-caching: keydiff_window rewrites the pages of its sinks, so none can be shared")
    if torch.cuda.is_available():
        note("moa-vllm was never run on a GPU: compare some answers with those of moa.apply before you rely on it")
    return [*command, *options]


def cpu_cache(environment: Mapping[str, str], note: Note) -> dict[str, str]:
    """Return how much memory vLLM shall take for keys and values on a CPU, GiB: a third of what is free.

    Its own default is nearly all of the machine's memory, which small machines do not have.
    """
    if torch.cuda.is_available() or CPU_CACHE in environment:
        return {}
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    size = max(1, free // 3 // 2**30)
    note(f"{CPU_CACHE}={size} GiB for keys and values: a third of the memory that is free")
    return {CPU_CACHE: str(size)}
