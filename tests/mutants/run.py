"""Plants faults in copies of the sources, one at a time, and runs the tests that must notice: `make mutants`.

The faults lie beside this file in YAML, by folders of the sources, those of a large folder by subjects: a name, the
file, a text that occurs there once, the text that takes its place, and the tests to run. Of each fault the verdict is

    killed    a test failed that passes without the fault
    survived  all tests passed: one is missing
    broken    nothing was tested: the text is not there once, the code does not run at all, or time ran out

All this happens in build/mutants, the verdicts too: a stopped run continues; changed sources or tests are judged again.
Exit code 1 unless all are killed.
"""

import argparse
import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, NamedTuple

import worker
import yaml

if TYPE_CHECKING:
    from moa.evaluation.journal import Journal

HERE = Path(__file__).parent
FOLDERS = ("kernels", "plans", "profiler", "search")
"""Of the sources, those that are installed within the folder moa."""
DECIDING = ("moa", *FOLDERS, "serving", "benchmarks", "tests")
"""What verdicts depend on."""
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "demo", "__pycache__", "*.egg-info")
NO_FAULT = ("SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError", "UnboundLocalError")
"""Errors of code that does not run at all: any test would notice."""


class Fault(NamedTuple):
    """A change of the sources that some test must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: list[str]

    def planted(self, text: str) -> str:
        """The file's text with the fault in it."""
        if text.count(self.old) != 1:
            raise ValueError(f"the old text occurs {text.count(self.old)} times in {self.file}")
        return text.replace(self.old, self.new)


class Outcome(NamedTuple):
    """The verdict on a fault, the test that failed or the reason, and how long it took, seconds."""

    verdict: str
    by: str
    seconds: float = 0.0


def faults(folder: Path = HERE) -> list[Fault]:
    """All faults, in the order of their files.

    Raises:
        ValueError: Two have one name.
    """
    found = [Fault(**entry) for path in sorted(folder.rglob("*.yaml")) for entry in yaml.safe_load(path.read_text())]
    twice = [name for name, count in Counter(fault.name for fault in found).items() if count > 1]
    if twice:
        raise ValueError(f"two faults have the name {twice[0]}")
    return found


class Copy:
    """A copy of the tree, whose tests import the copy's sources."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder, self.root, package = folder, folder / "tree", folder / "path" / "moa"
        shutil.rmtree(self.root, ignore_errors=True)  # an earlier run's; what numba compiled then stays
        shutil.rmtree(package, ignore_errors=True)
        shutil.copytree(root, self.root, ignore=LEFT_OUT)
        package.mkdir(parents=True)  # laid out as setuptools' package-dir says
        for source in (*(self.root / "moa").iterdir(), *(self.root / name for name in FOLDERS)):
            (package / source.name).symlink_to(source)

    def judge(self, fault: Fault, limit: float) -> Outcome:
        """Plant a fault, run its tests for up to `limit` seconds, and take the fault out again."""
        start, path = time.monotonic(), self.root / fault.file
        sound, times = path.read_text(), path.stat()
        try:
            path.write_text(fault.planted(sound))
            verdict, by = self.test(fault.tests, limit, apart=fault.file.startswith("kernels/numba/"))
        except ValueError as error:
            verdict, by = "broken", str(error)
        finally:
            path.write_text(sound)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # by which numba tells code of today
        return Outcome(verdict, by, round(time.monotonic() - start, 1))

    def test(self, tests: Sequence[str], limit: float, apart: bool = False) -> tuple[str, str]:
        """Verdict of tests up to the first that fails, and which; `apart` shares no compiled code with other faults."""
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as code:
            compiled = Path(code) if apart else self.folder / "numba"
            process = context.Process(target=worker.test, args=(theirs, self.folder, list(tests), compiled))
            process.start()
            theirs.close()
            try:
                if not ours.poll(limit):
                    return "broken", f"the tests took over {limit:g} s"
                status, test, error = ours.recv()
            except EOFError:
                return "broken", (self.folder / "output.txt").read_text().strip().splitlines()[-1]
            finally:
                process.kill()
                process.join()
        if status == 0:
            return "survived", ""
        return (
            ("killed", test) if test and error not in NO_FAULT else ("broken", f"{error or status} in {test or tests}")
        )


def digest(root: Path) -> str:
    """Of all that verdicts depend on."""
    sha = hashlib.sha256()
    for folder in DECIDING:
        for path in sorted((root / folder).rglob("*.py")):
            sha.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return sha.hexdigest()


def judge(root: Path, chosen: Sequence[Fault], journal: "Journal", limit: float, jobs: int) -> dict[str, Outcome]:
    """The outcome of each fault; what the journal knows is not tried again."""
    from moa.evaluation.journal import key

    state, outcomes, free = digest(root), {}, Queue()
    keys = {fault.name: key(state=state, fault=list(fault)) for fault in chosen}
    with ThreadPoolExecutor(jobs) as pool:
        for i in range(jobs):
            free.put(Copy(root, root / "build" / "mutants" / str(i)))

        def one(fault: Fault) -> Outcome:
            if known := journal.get(keys[fault.name]):
                return Outcome(*known)
            copy: Copy = free.get()
            try:
                return copy.judge(fault, limit)
            finally:
                free.put(copy)

        running = {pool.submit(one, fault): fault.name for fault in chosen}
        for future in as_completed(running):
            name, outcome = running[future], future.result()
            outcomes[name] = outcome
            if outcome.verdict != "broken" and journal.get(keys[name]) is None:
                journal.put(keys[name], list(outcome), name=name)
            print(f"{outcome.verdict:9}{outcome.seconds:6.1f} s  {name}: {outcome.by}", flush=True)
        wrong = _wrong_anyway(free.get(), {x.by for x in outcomes.values() if x.verdict == "killed"})
    for name, outcome in outcomes.items():
        if outcome.by in wrong:
            outcomes[name] = outcome._replace(verdict="broken", by=f"{outcome.by} fails without the fault too")
    return outcomes


def _wrong_anyway(copy: Copy, tests: set[str]) -> set[str]:
    """Those of the tests that fail on sound sources."""
    wrong: set[str] = set()
    while left := sorted(tests - wrong):
        verdict, by = copy.test(left, limit=3600)
        if verdict == "survived":
            break
        if by not in left:
            raise SystemExit(f"sound sources cannot be tested: {by}")
        wrong.add(by)
    return wrong


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["*"], help="names of faults to try, with * and ? as in a shell")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of a fault")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried at once, each on one thread")
    options, root, start = parser.parse_args(), HERE.parents[1], time.monotonic()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONSAFEPATH": "1",
        "TRITON_INTERPRET": "1",
    }
    multiprocessing.set_forkserver_preload(list(worker.WARM))
    chosen = [fault for fault in faults() if any(fnmatch(fault.name, name) for name in options.only)]
    if not chosen:
        parser.error(f"no fault has a name like {' or '.join(options.only)}")
    from moa.evaluation.journal import (
        Journal,  # not above: a worker imports this file, and must import moa from its copy
    )

    (root / "build" / "mutants").mkdir(parents=True, exist_ok=True)
    outcomes = judge(root, chosen, Journal(root / "build" / "mutants" / "verdicts.jsonl"), options.limit, options.jobs)
    counts = Counter(outcome.verdict for outcome in outcomes.values())
    print(f"\n{len(chosen)} faults in {time.monotonic() - start:.0f} s: ", end="")
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in ("killed", "survived", "broken")))
    for name, outcome in sorted(outcomes.items()):
        if outcome.verdict != "killed":
            print(f"{outcome.verdict}: {name} {outcome.by}")
    return int(counts["killed"] < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
