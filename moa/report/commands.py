"""Write the lines that make a result of `moa.compress` again, and those that use its plan."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OPTIONS = {"density": "--budget", "kv_gb": "--max-kv-gb", "read": "--max-read", "decode_ms": "--max-decode-ms"}
"""Options of `moa compress`, by kind of budget."""


def shell(folder: Path, figures: Mapping[str, Any]) -> list[str]:
    """Return lines for a shell: compress, unless no options of it say what was asked in Python, and what comes after.

    Args:
        folder: The folder of the result.
        figures: The content of its `figures.json`.
    """
    asked, model, plan = figures["asked"], named(figures), str(folder / "plan.yaml")
    lengths = ",".join(map(str, figures["profile"]["lengths"]))
    same = ["--dtype", asked["dtype"]]
    counts = [word for task, count in figures["evaluation"].items() for word in ("--task", f"{task}={count}")]
    lines = [
        ["moa", "show", plan],
        ["moa", "eval", model, "--plan", plan, "--lengths", lengths, *counts, "--seed", str(asked["seed"]), *same],
        ["moa", "bench", model, "--plan", plan, "--lengths", lengths, *same],
    ]
    if (again := _compress(folder, model, asked)) is not None:
        lines.insert(0, again)
    return list(map(shlex.join, lines))


def python(folder: Path, figures: Mapping[str, Any]) -> list[str]:
    """Return lines of Python that use the plan; above them the call that makes it again, where no command does."""
    asked, model = figures["asked"], named(figures)
    lines = ["import moa", f"model, tokenizer = {_call('moa.load_model', model, dtype=asked['dtype'])}"]
    if _compress(folder, model, asked) is None:
        options = {name: asked[name] for name in ("minutes", "lengths", "max_length", "dtype", "seed")}
        lines.insert(1, _call("moa.compress", model, output=str(folder), budget=asked["budgets"], **options))
    plan = repr(str(folder / "plan.yaml"))
    return [*lines, f"with moa.apply(model, {plan}):", "    model.generate(**inputs)"]


def _call(name: str, *values: Any, **options: Any) -> str:
    """Return a call in Python, its arguments as literals."""
    return f"{name}({', '.join([*map(repr, values), *(f'{key}=' + repr(value) for key, value in options.items())])})"


def named(figures: Mapping[str, Any]) -> str:
    """Return the model's name as it was asked for; results of older versions have its last part alone."""
    return str(figures.get("named") or figures["model"]["name"])


def _compress(folder: Path, model: str, asked: Mapping[str, Any]) -> list[str] | None:
    """Return the words of `moa compress`; None where its options cannot say the budgets."""
    words = ["moa", "compress", model, "-o", str(folder)]
    for kind, figures in asked["budgets"].items():
        given: Sequence[Any] = figures if isinstance(figures, list) else [figures]
        if kind not in OPTIONS or (kind == "density" and (len(given) > 1 or "@" in str(given[0]))):
            return None
        words += [word for figure in given for word in (OPTIONS[kind], str(figure))]
    words += ["--minutes", str(asked["minutes"])]
    words += ["--lengths", ",".join(map(str, asked["lengths"]))] if asked["lengths"] else []
    words += ["--max-length", str(asked["max_length"])] if asked["max_length"] else []
    return [*words, "--dtype", asked["dtype"], "--seed", str(asked["seed"])]
