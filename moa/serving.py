"""Provide `moa.serve_model`, which starts a server on a model under a plan: vLLM's, or transformers' own."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from os import PathLike

from moa import vllm_server
from moa.hf import server
from moa.hf.load import load_config
from moa.plans.errors import MoaError, brief
from moa.plans.plan import Plan
from moa.plans.progress import Note, silent
from moa.runtime.applied import apply

ENGINES = ("vllm", "transformers")


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
        MoaError: The engine is unknown or not installed, or an option or variable would serve without the plan.
        ModelMismatch: The plan was made for another model.
        Unsupported: vLLM cannot follow the plan.
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
    vllm_server.check(loaded, options, os.environ)
    if missing:
        raise MoaError(f"engine vllm needs {' and '.join(missing)}: docs/serve.md says how to install them")
    here = ["--host", host, "--port", str(port), *options]
    command = vllm_server.command(model, loaded, plan, here, note)
    os.execve(command[0], command, vllm_server.environment(os.environ, options, note))
