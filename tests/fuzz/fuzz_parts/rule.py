"""Runs a case in this process and judges it: right, or one clear line on stderr with exit code 2."""

import io
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fuzz_parts.answers import Unreadable, answer, over_budget
from fuzz_parts.cases import Base, Case
from fuzz_parts.change import Change

from moa.cli import main as cli

LONGEST = 600
"""Characters that a clear line has at most, the quoted paths aside."""
SECONDS = 60
UNCLEAR = re.compile(
    r"Traceback|object at 0x|<class |NoneType|has no attribute|not iterable|not subscriptable|positional argument|"
    r"unexpected keyword|unsupported operand|list index out of range|KeyError|TypeError|AttributeError|IndexError|"
    r"RuntimeError|not supported between|\[Errno|missing \d+ required|must be real number|expected str, bytes"
)
"""What Python says to programmers."""


NOTE = re.compile(r" set aside in |^refining: |^compressing: |^moa search --validate MODEL is now ")
"""Lines that may stand before a refusal: damaged files that are kept, and the work of a fit that only measuring can
refuse, below the line about the old spelling."""


class Slow(BaseException):
    """A case took too long."""


@dataclass
class Outcome:
    """What came of a line.

    Attributes:
        code: Exit code, None where something was raised.
        out: stdout.
        err: stderr.
        raised: The exception's last lines, if any.
        seconds: Time taken.
    """

    code: int | None
    out: str
    err: str
    raised: str
    seconds: float


def _stdout(encoding: str) -> Any:
    """A terminal of that encoding; `broken` is a pipe whose reader went away, `full` a disk without room."""
    if encoding == "full":
        return open("/dev/full", "w", encoding="utf-8")
    if encoding == "broken":
        reader, writer = os.pipe()
        os.close(reader)
        return open(writer, "w", encoding="utf-8")
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")


def _text(stream: Any) -> str:
    """What was written to it, where that can be read."""
    if isinstance(stream.buffer, io.BytesIO):
        stream.flush()
        return stream.buffer.getvalue().decode("utf-8", "replace")
    with suppress(OSError):
        stream.close()
    return ""


def run(line: list[str], folder: Path, encoding: str = "utf-8") -> Outcome:
    """Run a command line in `folder`."""
    out = _stdout(encoding)
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", newline="")
    code, raised, before = None, "", time.perf_counter()
    with (
        _native() as native,
        _here(folder),
        _limited(),
        _heard(err),
        patch.object(sys, "argv", ["moa", *line]),
        patch.object(sys, "stdout", out),
        patch.object(sys, "stderr", err),
    ):
        try:
            code = cli.main()
        except BaseException as error:
            raised = _short(error)
    seconds = time.perf_counter() - before
    return Outcome(code, _text(out), _text(err) + native[0], raised, seconds)


def judge(case: Case, workplace: Path, plain: dict[Base, Any]) -> tuple[str, list[str], Outcome]:
    """Run the case in a copy of the workplace; `plain` keeps the answers of plain lines.

    Returns:
        `right` or `refused`, what breaks the rule, and what came of the line.
    """
    with _copy(workplace) as folder:
        case = replace(case, changes=tuple(change for change in case.changes if _edited(change, folder)))
        before, line = _contents(folder), case.line
        encoding = next((c.encoding for c in case.changes if c.encoding != "utf-8"), "utf-8")
        found = run(line, folder, encoding)
        problems = _wrong(found, encoding == "broken")
        if found.code == 2:
            problems += _unclear(found.err, worked=encoding == "full")
            now = _contents(folder)
            changed = sorted(k for k in before.keys() | now.keys() if before.get(k, "") != now.get(k, ""))
            changed = [
                name
                for name in changed
                if not re.search(f"{re.escape(name)}.* set aside| set aside in {re.escape(name)}", found.err)
            ]
            if changed and encoding != "full":
                problems.append(f"refused, but changed {', '.join(changed)}"[:200])
        elif found.code == 0:
            problems += _accepted(case, folder, found, workplace, plain)
    return ("refused" if found.code == 2 else "right"), problems, found


def _accepted(case: Case, folder: Path, found: Outcome, workplace: Path, plain: dict[Base, Any]) -> list[str]:
    """What is wrong with the answer of a line that succeeded."""
    effects = {change.effect for change in case.changes}
    problems = ["accepted"] if "bad" in effects else []
    written = "-o" in case.line and case.line[-2:] == list(case.base.line[-2:])
    try:
        same = answer(case.base, folder, found.out) if written or effects <= {"same"} else None
        problems += over_budget(case.line, folder / case.base.output) if written else []
    except Unreadable as error:
        return [*problems, f"wrote what cannot be read: {error}"]
    if same is not None and effects <= {"same"} and same != expected(case.base, workplace, plain):
        problems.append("another answer")
    said = found.out if all(c.encoding == "utf-8" for c in case.changes) else ""
    path = folder / case.base.output
    if written and path.suffix in (".json", ".yaml") and path.is_file():
        said += path.read_text()
    if odd := re.search(r"\bnan\b|\bNaN\b|\bInfinity\b|[.]nan\b|[.]inf\b", said):
        problems.append(f"{odd[0]} in the answer")
    return problems


def _edited(change: Change, folder: Path) -> bool:
    """Whether the change could be made: not where an earlier one left another kind of file."""
    try:
        change.edit(folder)
    except Exception:
        return False
    return True


def expected(base: Base, workplace: Path, plain: dict[Base, Any]) -> Any:
    """The answer of the plain line."""
    if base not in plain:
        with _copy(workplace) as folder:
            found = run(list(base.line), folder)
            assert found.code == 0, (base, found)
            plain[base] = answer(base, folder, found.out)
    return plain[base]


def _wrong(found: Outcome, broken: bool) -> list[str]:
    if found.raised:
        return [found.raised]
    problems = [] if found.code in (0, 2) or (found.code == 141 and broken) else [f"exit code {found.code}"]
    if "Traceback" in found.out + found.err:
        problems.append("a traceback in what it prints")
    return problems


def _unclear(err: str, worked: bool) -> list[str]:
    """What is wrong with a refusal; one that comes after work may have had progress before it."""
    lines = err.splitlines()[-1:] if worked else [line for line in err.splitlines() if not NOTE.search(line)]
    problems = []
    if not lines or not lines[-1].startswith("error: ") or len(lines[-1]) < 15:
        problems.append("no line with the error")
    if len(lines) > 1:
        problems.append(f"{len(lines)} lines on stderr, not one: {lines[0][:80]}")
    if len(err) > LONGEST:
        problems.append(f"an error of {len(err)} characters")
    if said := UNCLEAR.search(err.partition("transformers cannot ")[0]):
        problems.append(f"an error in words of Python: {said[0]}")
    return problems


def _short(error: BaseException) -> str:
    """The exception, and the last place in our code that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if re.search(r"/(moa|plans|profiler|search|kernels)/[\w/]+\.py$", f.filename)
        and "site-packages" not in f.filename
    ]
    place = f"{ours[-1].filename.split('/')[-2]}/{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "?"
    return f"{type(error).__name__} in {place}: {str(error)[:150]}"


@contextmanager
def _copy(workplace: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="moa-fuzz-"))
    try:
        shutil.copytree(workplace, folder, symlinks=True, dirs_exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _contents(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in folder.rglob("*")
    }


@contextmanager
def _here(folder: Path) -> Iterator[None]:
    """In this folder, without a network, with a terminal of fixed width, with each warning as if it were the first."""
    before = Path.cwd()
    patches = [
        patch("huggingface_hub.constants.HF_HUB_OFFLINE", True), patch("datasets.config.HF_HUB_OFFLINE", True),
        patch("datasets.config.HF_DATASETS_CACHE", folder.with_name(f"{folder.name}-datasets")),
        patch.dict(os.environ, {"COLUMNS": "200", "MOA_CACHE": f"{folder}-datasets"}), warnings.catch_warnings(),
    ]  # fmt: skip
    os.chdir(folder)
    for each in patches:
        each.__enter__()
    try:
        warnings.simplefilter("default")
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        yield
    finally:
        for each in reversed(patches):
            each.__exit__(None, None, None)
        os.chdir(before)
        shutil.rmtree(folder.with_name(f"{folder.name}-datasets"), ignore_errors=True)


@contextmanager
def _native() -> Iterator[list[str]]:
    """What reaches the process's own stderr, past Python's."""
    said: list[str] = []
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said.append(file.read().decode("utf-8", "replace"))


@contextmanager
def _heard(err: Any) -> Iterator[None]:
    """Warnings of the package's logger on stderr, as where nobody set up logging; pytest did."""
    logger, handler = logging.getLogger("moa"), logging.StreamHandler(err)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.removeHandler(handler)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(_number: int, _frame: Any) -> None:
        raise Slow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)  # of CPU time: a busy machine is not the code's fault
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
