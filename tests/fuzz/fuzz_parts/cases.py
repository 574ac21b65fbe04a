"""What the cases are drawn from: plain lines of every command, and the changes that they get."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from fuzz_parts import checkpoint, files, lines
from fuzz_parts.change import Change
from fuzz_parts.workplace import EVAL, PROFILE, STUDY


@dataclass(frozen=True)
class Base:
    """A plain line, which succeeds.

    Attributes:
        line: Its words.
        inputs: Files that it reads besides the model's.
        model: Whether it reads the model.
        output: What it writes, if anything; empty for what it prints.
        weight: How often it is drawn.
    """

    line: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    model: bool = True
    output: str = ""
    weight: int = 4

    @property
    def command(self) -> str:
        """Its command."""
        return self.line[0]


def _base(words: str | Sequence[str], *inputs: str, model: bool = True, output: str = "", weight: int = 4) -> Base:
    line = words.split() if isinstance(words, str) else list(words)
    return Base((*line, *(("-o", output) if output else ())), inputs, model, output, weight)


_ONE = "profile model --lengths 256 --samples 1"
_PARTIAL = tuple(f"resumed.safetensors.partial/{name}" for name in ("settings.json", "text.256.0.safetensors"))
_SEARCH = "search profile.safetensors"
_GENERATE = "generate model --plan plan.yaml --prompt-file prompt.txt --max-new-tokens 6"
BASES = (
    _base(f"{_ONE} --source text", output="new.safetensors", weight=6),
    _base(f"{_ONE} --source text --around plan.yaml", "plan.yaml", output="new.safetensors", weight=2),
    _base(f"{_ONE} --source text --around plan.yaml --loss kl", "plan.yaml", output="new.safetensors", weight=2),
    _base(f"{_ONE} --data docs.jsonl", "docs.jsonl", output="new.safetensors", weight=5),
    _base(f"{_ONE} --data turns.jsonl", "turns.jsonl", output="new.safetensors", weight=3),
    _base(f"{_ONE} --data docs.txt", "docs.txt", output="new.safetensors", weight=3),
    _base(f"{_ONE} --data docs.parquet", "docs.parquet", output="new.safetensors", weight=2),
    _base(PROFILE, *_PARTIAL, _PARTIAL[1], output="resumed.safetensors", weight=5),
    _base(
        "profile model --lengths 512 --samples 1 --source text --seed 1 --add profile.safetensors",
        "profile.safetensors",
        output="new.safetensors",
        weight=3,
    ),
    _base(f"{_SEARCH} --max-density 0.8", "profile.safetensors", model=False, output="new.yaml", weight=14),
    _base(f"{_SEARCH} --max-density 0.8", "found.yaml", "profile.safetensors", model=False, output="found.yaml"),
    _base(
        f"{_SEARCH} --max-density 0.9@640 --max-kv-gb 0.0002@640", "profile.safetensors", model=False, output="new.yaml"
    ),
    _base(
        f"{_SEARCH} --max-decode-ms 1@640 --costs costs.json",
        "costs.json",
        "costs.json",
        "profile.safetensors",
        model=False,
        output="new.yaml",
        weight=8,
    ),
    _base(
        f"{_SEARCH} --max-harm 1 --minimise kv_gb@640 --lengths 640",
        "profile.safetensors",
        model=False,
        output="new.yaml",
        weight=3,
    ),
    _base(f"{_SEARCH} --max-density 0.9 --front 2", "profile.safetensors", model=False, output="front", weight=2),
    _base(STUDY, "study.journal", "study.journal", "study.yaml", output="study.yaml", weight=4),
    _base([*STUDY, "--storage", "study.journal"], "study.journal", "study.journal", output="study.yaml", weight=5),
    _base(f"{_SEARCH} --max-density 0.9 --validate model --validate-length 512", output="new.yaml", weight=1),
    _base("show plan.yaml", "plan.yaml", model=False, weight=20),
    _base("show plan.yaml dense.yaml --lengths 512,1024", "plan.yaml", "dense.yaml", model=False, weight=6),
    _base("show plan.yaml --png new.png", "plan.yaml", model=False, weight=2),
    _base("plans", model=False, weight=1),
    _base("compress model --lengths 576 --minutes 0.001 --budget 0.9", output="new", weight=3),
    _base("compare plan.yaml dense.yaml", "plan.yaml", "dense.yaml", model=False, weight=2),
    _base("report small", "small/figures.json", "small/plan.yaml", model=False, weight=3),
    _base("doctor", model=False, weight=1),
    _base("doctor model", weight=6),
    _base("doctor model plan.yaml --length 512", "plan.yaml", "plan.yaml", weight=8),
    _base(EVAL, "plan.yaml", weight=5),
    _base(EVAL, "eval.jsonl", "eval.jsonl", "eval.json", output="eval.json", weight=6),
    _base(_GENERATE, "prompt.txt", "plan.yaml", weight=18),
    _base(f"{_GENERATE} --chat", "prompt.txt", weight=5),
    _base("bench model --plan plan.yaml --lengths 256 --repeats 1", "plan.yaml", weight=4),
    _base("bench model --plan plan.yaml --lengths 256 --repeats 1", "plan.yaml", output="new.json", weight=2),
    _base("measure model --lengths 256,320 --batches 1 --rounds 1", output="new.json", weight=4),
)


@dataclass(frozen=True)
class Case:
    """A plain line with its changes, all drawn from the seed."""

    seed: int
    base: Base
    changes: tuple[Change, ...]

    @property
    def line(self) -> list[str]:
        """The words after `moa`."""
        words = list(self.base.line)
        for change in self.changes:
            words = change.line(words)
        return words


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = Random(f"moa/{seed}")
    base = rng.choices(BASES, [b.weight for b in BASES])[0]
    count = rng.choices([1, 2, 3], [7, 2, 1])[0]
    return Case(seed, base, tuple(_change(base, rng) for _ in range(count)))


def _change(base: Base, rng: Random) -> Change:
    ways = ["line"] * 4 + ["file"] * (5 if base.inputs else 0) + ["model"] * (5 if base.model else 0)
    way = rng.choice(ways)
    if way == "line":
        return lines.change(base.command, rng)
    return checkpoint.change(base.command, rng) if way == "model" else files.change(rng.choice(base.inputs), rng)
