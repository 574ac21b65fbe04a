"""Fit a profile and an evaluation into minutes, from times of short passes measured on the model itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any

from moa.evaluating import evaluate_plans
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.plans.progress import Progress
from moa.profiler.estimate import run_pass, warm_up
from moa.profiler.settings import Settings, every, tasks
from moa.profiler.sources import DEFAULT, SOURCES

PROBES = (256, 1024)
"""Tokens of the two passes that are timed, or of as many as the model takes."""
MOST = 20
"""Largest number of contexts per length and needle task in an evaluation that is fitted to the time."""


@dataclass(frozen=True)
class Pace:
    """Seconds of some work by its length: `linear * n + square * n**2`."""

    linear: float
    square: float

    @classmethod
    def through(cls, taken: Mapping[int, float]) -> "Pace":
        """Return the pace through the seconds of one or two lengths, neither part of it below 0."""
        (n, seconds), *rest = sorted(taken.items(), reverse=True)
        if not rest:
            return cls(seconds / n, 0.0)
        m, shorter = rest[0]
        square = (seconds / n - shorter / m) / (n - m)
        square = min(max(square, 0.0), seconds / n**2)
        return cls(seconds / n - square * n, square)

    def __call__(self, n: int) -> float:
        """Return the seconds at length `n`."""
        return self.linear * n + self.square * n**2


class Whole:
    """The progress of all stages as one, in tenths of a second, by the seconds that each is expected to take."""

    def __init__(self, seconds: Mapping[str, float], progress: Progress) -> None:
        """Place the stages one after the other."""
        self._seconds, self._progress = seconds, progress

    def stage(self, name: str) -> Progress:
        """Return what tells a stage's own progress as a part of the whole."""
        names = list(self._seconds)
        before = sum(self._seconds[each] for each in names[: names.index(name)])

        def tell(done: int, total: int, what: str) -> None:
            seconds = before + self._seconds[name] * done / max(total, 1)
            self._progress(round(10 * seconds), round(10 * sum(self._seconds.values())), f"{name}, {what}")

        return tell


def pass_pace(model: Any, longest: int | None, reads: bool = False) -> Pace:
    """Return the pace of a profile's passes, with `reads` or without, from two short ones on random tokens."""
    lengths = {n if longest is None else min(n, longest) for n in PROBES}
    settings = Settings(tuple(lengths), variants=every(ModelInfo.of(model)), reads=reads)
    warm_up(model, settings)
    return Pace.through({n: run_pass(model, settings, n) for n in sorted(lengths)})


def profile_seconds(pace: Pace, lengths: Sequence[int], samples: int, reads: bool = False) -> float:
    """Return the seconds of a profile of the default sources."""
    todo = tasks(Settings(tuple(lengths), samples, reads=reads), [SOURCES[name] for name in DEFAULT])
    return sum(pace(task.length) for task in todo)


def profile_sizes(lengths: Sequence[int], samples: int, fixed: bool) -> list[tuple[tuple[int, ...], int]]:
    """Return pairs of lengths and samples in the order in which they are preferred.

    Fewer samples come before fewer lengths, and the longest length goes first; with `fixed` the lengths stay.
    """
    shorter = [tuple(lengths[:count]) for count in range(len(lengths), len(lengths) - 1 if fixed else 0, -1)]
    return [(each, count) for each in shorter for count in range(samples, 0, -1) if count > 1 or each == shorter[-1]]


def evaluation_counts(model: tuple[Any, Any], plan: Plan, lengths: Sequence[int], room: float) -> dict[str, int]:
    """Return how many samples of each task per length take `room` seconds, from one sample each at short lengths.

    One needle and four needles get the same number of contexts, at least one; held-out text gets one window, or two
    where they take a quarter of the time at most. Where the plan reads less than it keeps, as much text is decoded too.
    """
    texts = ["text", "decoded"] if plan.reads() else ["text"]
    clock, short, each = [perf_counter()], sorted(lengths)[:2], len(texts) + 1
    evaluate_plans(
        model, {"plan": plan}, lengths=short, tasks=dict.fromkeys([*texts, "four"], 1),
        progress=lambda *_: clock.append(perf_counter()),
    )  # fmt: skip
    took = [after - before for before, after in pairwise(clock)]
    needles = Pace.through(dict(zip(short, took[each - 1 :: each], strict=True)))
    text = sum(took[-each:-1]) / took[-1]  # of the last length: the very first sample pays for what is done once
    one = sum(map(needles, lengths))
    windows = 2 if 2 * text * one <= room / 4 else 1
    contexts = int((room - (clock[-1] - clock[0]) - windows * text * one) / (2 * one))
    count = min(max(contexts, 1), MOST)
    return {**dict.fromkeys(texts, windows), "single": count, "four": count}
