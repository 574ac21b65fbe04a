"""How vLLM's server is started under a plan: its command, its environment, and what is refused before it starts."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from moa.plans import paged
from moa.plans.errors import MoaError, Unsupported, brief
from moa.plans.plan import Plan
from moa.plans.progress import Note

CHUNK = 256
"""Tokens of a step under a plan: the blocks of whole chunks are held while a prompt is read."""

CPU_CACHE = "VLLM_CPU_KVCACHE_SPACE"
MEMORY = ("--kv-cache-memory-bytes", "--gpu-memory-utilization", "--device-memory-utilization")
"""Options that say how much memory keys and values may take."""

PLUGINS = "VLLM_PLUGINS"
CONFIG = "--additional-config"

ELSEWHERE = {
    "--model": "the model is named before --",
    "--config": "options of moa serve would win over those of the file: name them after --",
}
"""Options that are refused, and why."""


def check(plan: Plan, options: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse what vLLM cannot do under a plan, or would do without it.

    Args:
        plan: The plan.
        options: More options of the server.
        environment: Its environment.

    Raises:
        Unsupported: The plan cannot be followed here.
        MoaError: An option or variable; the message names it.
    """
    paged.check(plan)
    if plan.moves_keys() and on_gpu():
        raise Unsupported(
            "keydiff_window with vLLM is for CPUs so far; on a GPU take a plan whose sinks hold the first keys: "
            "moa search --pattern sink_window"
        )
    for option, why in ELSEWHERE.items():
        if option in named(options):
            raise MoaError(f"{option} is not taken: {why}")
    if "moa" not in environment.get(PLUGINS, "moa").split(","):
        raise MoaError(f"{PLUGINS} must name moa, or vLLM serves without the plan, found {brief(environment[PLUGINS])}")


def command(
    model: str, plan: Plan, path: str | PathLike[str], options: Sequence[str], note: Note
) -> list[str]:  # fmt: skip
    """Return the command that starts vLLM's server under a plan; what is set is told to `note`.

    Args:
        model: Hub id or local folder.
        plan: The plan.
        path: Its file or name.
        options: Options that are given; defaults stand back behind them.
        note: Called with a line per default.

    Raises:
        MoaError: The options ask for another plan.
    """
    where = str(Path(path).resolve()) if Path(path).is_file() else str(path)
    found = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    given = named(options)
    if "--max-num-batched-tokens" not in given:
        at_once = given.get("--max-num-seqs") or ""
        chunk = max(CHUNK, int(at_once)) if at_once.isdecimal() else CHUNK
        found += ["--max-num-batched-tokens", str(chunk)]
        note(f"--max-num-batched-tokens {chunk}: longer chunks of a prompt hold blocks that the plan would free")
        if not at_once and on_gpu():
            note(f"at most {chunk} requests run at once; --max-num-seqs sets another number, and longer chunks with it")
    if plan.moves_keys() and not given.keys() & {"--enable-prefix-caching", "--no-enable-prefix-caching"}:
        found += ["--no-enable-prefix-caching"]
        note("--no-enable-prefix-caching: keydiff_window rewrites the pages of its sinks, so none can be shared")
    if on_gpu():
        note("moa-vllm was never run on a GPU: compare some answers with those of moa.apply before you rely on it")
    return [*found, *with_plan(options, where)]


def environment(given: Mapping[str, str], options: Sequence[str], note: Note) -> dict[str, str]:
    """Return the environment of the server.

    On a CPU keys and values get a third of the memory that is free, unless something else is asked for: vLLM's own
    default is nearly all of the machine's memory, which small machines do not have.

    Args:
        given: The environment that is given.
        options: Options of the server.
        note: Called with a line where the environment is changed.
    """
    found = dict(given)
    asked = next((option for option in MEMORY if option in named(options)), None)
    if asked and found.pop(CPU_CACHE, ""):
        note(f"{CPU_CACHE} is unset: in vLLM it would win over {asked}")
    if not (asked or found.get(CPU_CACHE) or on_gpu()):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        found[CPU_CACHE] = str(max(1, free // 3 // 2**30))
        note(f"{CPU_CACHE}={found[CPU_CACHE]} GiB for keys and values: a third of the memory that is free")
    return found


def named(options: Sequence[str]) -> dict[str, str | None]:
    """Return what follows each option, by its name in vLLM's spelling; None where nothing does."""
    found: dict[str, str | None] = {}
    for option, following in zip_longest(options, options[1:]):
        if option.startswith("--"):
            name, given, value = option.partition("=")
            found[_spelled(name)] = value if given else following
    return found


def with_plan(options: Sequence[str], where: str) -> list[str]:
    """Return the options with the plan in --additional-config, beside what else is asked for there.

    vLLM takes the last JSON, and instead of any JSON what is given as --additional-config.KEY.

    Args:
        options: Options that are given.
        where: The plan's file or name.

    Raises:
        MoaError: They ask for another plan, in both ways at once, or not by a JSON object.
    """
    rest, jsons, keys = [], [], {}
    left = iter(options)
    for option in left:
        name, given, value = option.partition("=")
        name, _, key = _spelled(name).partition(".")
        if not option.startswith("--") or name != CONFIG:
            rest.append(option)
            continue
        value = value if given else next(left, "")
        if key:
            keys[key] = value
        else:
            jsons.append(value)
    if jsons and keys:
        raise MoaError(f"{CONFIG} takes one JSON object or {CONFIG}.KEY, not both: vLLM would drop the former")
    if keys:
        _same(keys.setdefault("moa_plan", where), where)
        return [*rest, *(f"{CONFIG}.{key}={value}" for key, value in keys.items())]
    try:
        asked: Any = json.loads(jsons[-1]) if jsons else {}
    except ValueError:
        asked = None
    if not isinstance(asked, dict):
        raise MoaError(f"{CONFIG} takes a JSON object, found {brief(jsons[-1])}")
    _same(asked.setdefault("moa_plan", where), where)
    return [*rest, CONFIG, json.dumps(asked)]


def on_gpu() -> bool:
    """Return whether vLLM serves on a GPU: there is one, and vLLM is not its build for CPUs."""
    try:
        return torch.cuda.is_available() and "cpu" not in version("vllm")
    except PackageNotFoundError:  # the build for CPUs is another distribution
        return False


def _same(asked: Any, where: str) -> None:
    if asked != where:
        raise MoaError(f"{CONFIG} must not name another moa_plan than --plan, found {brief(asked)}")


def _spelled(name: str) -> str:
    """Return an option's name with dashes, of --a_b.c_d the part before the dot."""
    option, dot, key = name.partition(".")
    return option.replace("_", "-") + dot + key
