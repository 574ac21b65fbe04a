"""Provide what commands share: options, how they are read, and the progress bar."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from moa.kernels.registry import names
from moa.plans.errors import MoaError, brief
from moa.plans.span import LONGEST

if TYPE_CHECKING:
    from rich.console import Console

Backend = Annotated[str | None, typer.Option(help=f"Back-end: {names()}. Default: the one for the device.")]
"""The option `--backend`."""

Dtype = Annotated[
    str,
    typer.Option(
        help="Dtype of the model: float32, bfloat16, float16 or auto, the checkpoint's; on a CPU that is float32, or "
        "bfloat16 if the checkpoint is and the CPU has instructions for it."
    ),
]
"""The option `--dtype`."""

Json = Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")]
"""The option `--json`."""

Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress and no notes.")]
"""The option `--quiet`."""

Model = Annotated[str, typer.Argument(help="Model: hub id, local folder, or .gguf file.")]
"""The argument MODEL."""

Number = TypeVar("Number", int, float)
Value = TypeVar("Value")


def messages(quiet: bool = False) -> "Console":
    """Return the console of progress, notes and messages: stderr, or nothing."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, quiet=quiet)


def print_json(found: Any) -> None:
    """Print figures as JSON."""
    typer.echo(json.dumps(found, indent=1))


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Return whole numbers up to `LONGEST` from `1024,2048`."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise MoaError(f"{name} must be whole numbers separated by commas, found {brief(text)}") from None
    if found[-1] > LONGEST:
        raise MoaError(f"{name} must be at most {LONGEST}, found {found[-1]}")
    return found


def by_name(form: str, texts: Sequence[str], read: Callable[[str], Value]) -> dict[str, Value]:
    """Return values by name from items such as `text=2`; an error quotes `form`, which says how they are written."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name in found:
            raise MoaError(f"{form}, each name once; found {brief(name)} twice")
        if not value:
            raise MoaError(f"{form}, found {brief(text)}")
        try:
            found[name] = read(value)
        except ValueError:
            raise MoaError(f"{form}, found {brief(text)}") from None
    return found


def choice(name: str, value: str | None, valid: tuple[str, ...]) -> Any:
    """Return `value` if it is None or valid, else raise an error."""
    if value is not None and value not in valid:
        raise MoaError(f"{name} must be one of {', '.join(valid)}, found {brief(value)}")
    return value


class Bar:
    """A progress bar on stderr that counts tokens and not samples, since long samples take longer.

    `opening` is printed once, above the first message: after the options were checked, before the work.
    """

    def __init__(self, title: str, console: "Console | None" = None, opening: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"))
        console = console or Console(stderr=True)
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console)
        self._task = self._progress.add_task(title, total=None)
        self._title, self._total, self._opening = title, 0, opening

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __call__(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` tokens have been run, the last of them for `what`."""
        self._open()
        if total != self._total:  # other work, whose remaining time is estimated from its own start
            self._total = total
            self._progress.reset(self._task, total=total)
        self._progress.update(self._task, completed=done, total=total, description=f"{self._title}: {what}")

    def note(self, line: str) -> None:
        """Print a line above the bar."""
        self._open()
        self._progress.console.print(line)

    def _open(self) -> None:
        if self._opening:
            self._progress.console.print(self._opening, soft_wrap=True)
            self._opening = ""

    def __exit__(self, error: object, *_: object) -> None:
        if error is not None and not self._progress.tasks[0].completed:
            self._progress.live.transient = (
                True  # nothing was done: remove the bar, so that only the error's line stays
            )
            self._progress.live.stop()
        else:
            self._progress.stop()
