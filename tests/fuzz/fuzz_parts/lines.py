"""Changes of a command line: options added, repeated, moved, dropped, with values of every kind."""

from functools import cache
from importlib import import_module
from random import Random
from typing import Any, get_args, get_type_hints

from fuzz_parts.change import Change

NUMBERS = (
    "", " ", "0", "-1", "1", "2", "3", "63", "64", "65", "128", "nan", "inf", "-inf", "1e309", "1e-320", "1e3", "0x10",
    "1_000", "٣", "½", "1.5", "99999999999999999999", "2147483648", "9" * 5000, "true", "None", "-", "--", "+5", " 7 ",
    "1,5", "16777216", "16777217", "1e400",
)  # fmt: skip
TEXTS = (
    "", " ", ",", "é", "日本", "\u202e", "a\nb", "\x1b[31m", "[bold]", "[/x]", "%s{0}", "x" * 5000, "..", "~", "*",
    "docs[1].txt", "\udcff", "auto", "text", "AUTO", " auto", "None", "0", "://", "sqlite://", "hub:", "hub:../..",
    "file:///etc/passwd", "sink_window", "keydiff_window", "float32", "bfloat16", "float16", "float64", "numba",
    "torch", "triton", "reference", "fisher", "mass", "kl", "nll", "given", "greedy",
)  # fmt: skip
LISTS = (
    "256", "320", "256,320", "320,256,256", " 512 , 640 ", "512,640", "256,", ",256", "256,,320", "256;320", "256 320",
    "1,2", "0,1", "256.0", "1024", "2048", "2049", "384,512",
)  # fmt: skip
BUDGETS = (
    "0.5", "0.5@512", "1", "1.0@1", "0.9@640", "0.6@4096", "0.5@", "@512", "0.5@512x", "0.5@512x2", "5@512x2", "1e-9",
    "1e-9@512", "0.0001@512x8", "1e-3@512", "0.5@0", "0.5@-1", "0@512", "nan@512", "inf@512", "-1@512", "0.5@512@640",
    "5e-1", "½", "1@16777216", "1@16777217", "1@512x1048577", "0.5@5.5", "1000@512", "2@640",
)  # fmt: skip
WEIGHTS = ("text=1", "facts=1", "text=0", "text=-1", "text=nan", "text=inf", "text", "=1", "books=1", "text=1=2",
           "text=1e308", "text=1e-320", "facts=0", "TEXT=1", "text =1")  # fmt: skip
COSTS = ("density@512", "kv_gb@640x2", "decode_ms@512", "prefill_ms@640", "density", "harm@512", "density@512x2",
         "speed@512", "@512", "decode_ms@0")  # fmt: skip
PATHS = (
    "missing", "missing/x", "/proc/x", "/dev/null", "/dev/full", ".", "/", "", "model", "folder.yaml", "loop",
    "dangling.yaml", "x" * 300, "model/config.json", "model/model.safetensors", "plan.yaml", "dense.yaml", "other.yaml",
    "found.yaml", "costs.json", "eval.json", "eval.jsonl", "profile.safetensors", "study.journal", "binary.bin",
    "empty",
    "prompt.txt", "docs.jsonl", "docs.txt", "docs.parquet", "turns.jsonl", "a b.yaml", "é.yaml", "[x].yaml",
    "new.yaml", "new.json", "new.safetensors", "new", "plan.yaml/x", "\udcff.yaml", "./model", "model/", "~nobody",
    "resumed.safetensors.partial", "smollm2-135m-instruct-0.5", "a\nb.yaml", "new.png", "new.bmp",
)  # fmt: skip
# Names that are enough to see a size explode, but that would not return in time if they were honoured.
SLOW = {"samples", "needles", "four_needles", "ppl_windows", "rounds", "trials", "front", "repeats", "round_samples",
        "max_new_tokens", "calibrate"}  # fmt: skip
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("lengths", "batches", "sinks", "keydiff"), LISTS),
    **dict.fromkeys(("max_density", "max_read", "max_kv_gb", "max_decode_ms", "max_prefill_ms", "max_harm"), BUDGETS),
    "source_weight": WEIGHTS,
    "minimise": COSTS,
    **dict.fromkeys(("model", "plan", "other", "profile", "add", "data", "around", "costs", "measure", "validate",
                     "storage", "prompt_file", "png", "output", "config", "sources", "harness_folder"), PATHS),
}  # fmt: skip


@cache
def parameters(command: str) -> tuple[Any, ...]:
    """What the command line itself declares, so that a new option is tried without a word here."""
    from typer.main import get_command

    from moa.cli.main import app

    return tuple(p for p in get_command(app).commands[command].params if p.name != "help")  # type: ignore[attr-defined]


def change(command: str, rng: Random) -> Change:
    """Any change of a line of `command`."""
    kinds = [odd] * 12 + [spelt, moved, defaulted, repeated, dropped, unknown, terminal]
    return rng.choice(kinds)(command, rng)


def odd(command: str, rng: Random) -> Change:
    """A value from the pools for one option or argument, in place of what the line has."""
    parameter = rng.choice(parameters(command))
    hint = get_type_hints(import_module(f"moa.cli.{command}").command)[parameter.name]
    number = bool({hint, *get_args(hint)} & {int, float})
    if getattr(parameter, "is_flag", False):
        flag = rng.choice([*parameter.opts, *parameter.secondary_opts])
        return Change(flag, "free", lambda line: [*line, flag])
    pool = NUMBERS if number else rng.choice([KINDS.get(parameter.name, TEXTS)] * 3 + [TEXTS, NUMBERS])
    value = rng.choice(pool)
    bad = number and not _is_number(value)
    if parameter.name == "minutes" and not bad and _size(value) > 0:
        value = "0.001"
    if number and parameter.name in SLOW and not bad and _size(value) > 4:
        value = "2"
    return Change(
        f"{parameter.name} {value!r}"[:90], "bad" if bad else "free", lambda line: put(line, parameter, value)
    )


def put(line: list[str], parameter: Any, value: str) -> list[str]:
    """The line with `value` for `parameter`, whatever it said before."""
    if parameter.param_type_name == "argument":
        names = [p.name for p in parameters(line[0]) if p.param_type_name == "argument"]
        place = 1 + names.index(parameter.name)
        there = place < len(line) and not line[place].startswith("-")
        return [*line[:place], value, *line[place + there :]]
    line = list(line)
    if not parameter.multiple:
        for opt in parameter.opts:
            while opt in line:
                at = line.index(opt)
                del line[at : at + 2]
    return [*line, parameter.opts[-1], value]


def _options(line: list[str]) -> list[list[str]]:
    """The options of a plain line, each with its value."""
    first = next((i for i, word in enumerate(line) if word.startswith("-")), len(line))
    found: list[list[str]] = []
    for word in line[first:]:
        if word.startswith("-"):
            found.append([word])
        else:
            found[-1].append(word)
    return found


def _rest(line: list[str]) -> list[str]:
    return line[: next((i for i, word in enumerate(line) if word.startswith("-")), len(line))]


def spelt(_command: str, _rng: Random) -> Change:
    """`--option=value`."""

    def line(words: list[str]) -> list[str]:
        joined = (["=".join(o)] if o[0].startswith("--") and len(o) == 2 else o for o in _options(words))
        return [*_rest(words), *(word for option in joined for word in option)]

    return Change("--option=value", "same", line)


def moved(_command: str, rng: Random) -> Change:
    """Options in another order, those that may be repeated among themselves as they were."""
    seed = rng.random()

    def line(words: list[str]) -> list[str]:
        options = _options(words)
        names = [o[0] for o in options]
        if len(set(names)) < len(names):
            return words
        Random(seed).shuffle(options)
        return [_rest(words)[0], *(w for o in options for w in o), "--", *_rest(words)[1:]]

    return Change("options first, in another order", "same", line)


def defaulted(command: str, rng: Random) -> Change:
    """An option said at its default."""
    said = [
        p for p in parameters(command)
        if p.param_type_name == "option" and p.default not in (None, False, True) and not p.multiple and not p.is_flag
    ]  # fmt: skip
    if not said:
        return spelt(command, rng)
    parameter = rng.choice(said)
    option = parameter.opts[-1]

    def line(words: list[str]) -> list[str]:
        return words if set(parameter.opts) & set(words) else [*words, option, str(parameter.default)]

    return Change(f"{option} at its default", "same", line)


def repeated(command: str, rng: Random) -> Change:
    """A single-valued option twice, with the same value."""
    single = {opt for p in parameters(command) if not p.multiple for opt in p.opts}
    seed = rng.random()

    def line(words: list[str]) -> list[str]:
        options = [o for o in _options(words) if o[0] in single]
        return [*words, *Random(seed).choice(options)] if options else words

    return Change("an option twice", "same", line)


def dropped(_command: str, rng: Random) -> Change:
    """A word less."""
    seed = rng.random()

    def line(words: list[str]) -> list[str]:
        at = Random(seed).randrange(1, len(words)) if len(words) > 1 else None
        return words if at is None else words[:at] + words[at + 1 :]

    return Change("a word less", "free", line)


def unknown(_command: str, rng: Random) -> Change:
    """What the command line does not know."""
    word = rng.choice(["--no-such", "--lenghts=5", "-z", "---", "--seed=0=0", "-oo", "--"])
    extra = [word] if word != "--" else ["--", "a", "b", "c"]
    return Change(" ".join(extra), "bad" if word in ("--no-such", "-z", "--") else "free", lambda line: [*line, *extra])


def terminal(_command: str, rng: Random) -> Change:
    """A terminal that cannot show everything, or a reader that went away."""
    encoding = rng.choice(["ascii", "latin-1", "broken", "full"])
    return Change(f"terminal: {encoding}", "free", encoding=encoding)


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _size(value: str) -> float:
    return abs(float(value))
