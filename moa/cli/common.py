"""Share among commands the reading of options and the progress bar."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from moa.kernels.registry import names
from moa.plans.errors import MoaError, brief
from moa.plans.span import LONGEST

if TYPE_CHECKING:
    from rich.console import Console

Backend = Annotated[str | None, typer.Option(help=f"{names()}; else the device's own.")]
"""The option `--backend`."""

Number = TypeVar("Number", int, float)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Return whole numbers up to `LONGEST` from `1024,2048`."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise MoaError(f"{name} must be whole numbers separated by commas, found {brief(text)}") from None
    if found[-1] > LONGEST:
        raise MoaError(f"{name} must be at most {LONGEST}, found {found[-1]}")
    return found


def by_name(form: str, texts: Sequence[str], number: Callable[[str], Number]) -> dict[str, Number]:
    """Return numbers by name from `text=2`; `form` says in an error how they are written."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = number(value)
        except ValueError:
            raise MoaError(f"{form}, found {brief(text)}") from None
    return found


def distinct(names: Sequence[str]) -> list[str]:
    """Return the names, all numbered where two are equal or one is `dense`."""
    if len({"dense", *names}) > len(names):
        return list(names)
    return [f"{i} {name}" for i, name in enumerate(names, 1)]


def choice(name: str, value: str | None, valid: tuple[str, ...]) -> Any:
    """Return `value` if it is None or valid, else raise an error."""
    if value is not None and value not in valid:
        raise MoaError(f"{name} must be one of {', '.join(valid)}, found {brief(value)}")
    return value


def plan_name(path: str) -> str:
    """Return what tables call a plan: its file's name without `.yaml`, or the name of a shipped plan."""
    return Path(path).name.removesuffix(".yaml")


class Bar:
    """A bar on stderr whose time left counts tokens, not samples: long samples take longer."""

    def __init__(self, title: str, console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        console = console or Console(stderr=True)
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task(title, total=None)
        self._title, self._total = title, 0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` tokens were run, the last for `what`."""
        if total != self._total:  # other work than before: its time left is its own
            self._total = total
            self._progress.reset(self._task, total=total)
        self._progress.update(self._task, completed=done, total=total, description=f"{self._title}: {what}")

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None and not self._progress.tasks[0].completed:
            self._progress.live.transient = True  # nothing was done: the bar goes, the error's line stays
            self._progress.live.stop()
        else:
            self._progress.stop()
