"""Have the other environment measure kvpress's methods on our samples, and keep what it finds.

The process gets one job on stdin: `model`, a folder; `dtype`; `threads`; and `items`. An item has a `kind`, a `context`
of token ids, what comes `then` (questions, the rest of a window, tokens to decode), and `rows`: by name, `method` and
`ratio`, or None for the dense model. It answers with a line of JSON per item and row, after one that says its versions.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from peers.samples import NEEDLES, TASKS, parts
from peers.shares import ratio, tokens

from moa.evaluation.journal import Journal, key
from moa.evaluation.samples import Sample
from moa.evaluation.tasks.needles import answered
from moa.evaluation.tasks.text import QUARTERS
from moa.plans.errors import MoaError
from moa.plans.plan import Plan

HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv-peers" / "bin" / "python"
DENSE = "dense, kvpress"
"""The dense model in the other environment."""
PEERS = {
    "StreamingLLM": "arXiv 2309.17453", "SnapKV": "arXiv 2404.14469", "ExpectedAttention": "arXiv 2510.00636",
    "KeyDiff": "arXiv 2504.15364", "CriticalKV": "arXiv 2502.03805, over ExpectedAttention",
    "AdaKV": "arXiv 2407.11550, over ExpectedAttention", "KVzip": "arXiv 2505.23416",
}  # fmt: skip
"""What is measured of kvpress, and its paper."""


@dataclass(frozen=True)
class Item:
    """What is measured of some rows at once.

    Attributes:
        what: The item of a job, but for its rows.
        rows: By name, the method and its ratio; None for the dense model.
        about: What people should read of it in the journal, by which rounds of timing differ too.
        depends: What its results depend on besides, such as weights and machine.
    """

    what: dict[str, Any]
    rows: Mapping[str, Any]
    about: Mapping[str, Any]
    depends: Mapping[str, Any]

    def key(self, row: str) -> str:
        """Return the journal's key of a row's result."""
        own = {"what": self.what, "row": self.rows[row], "about": self.about, "environment": pinned()}
        return key(**self.depends, **own)


def pinned() -> str:
    """Return the versions that the other environment is made of."""
    return (HERE / "requirements.txt").read_text()


def check(python: Path) -> None:
    """Refuse an interpreter that is not there.

    Raises:
        MoaError: It is not there.
    """
    if not python.exists():
        raise MoaError(f"{python}: no such interpreter; `make peers-env` makes the environment of the peers")


def rows(plans: Mapping[str, Plan], n: int, dtype: Any) -> dict[str, Any]:
    """Return the rows of a context of `n` tokens: dense, and every peer within the bytes of each plan, by density."""
    found: dict[str, Any] = {DENSE: None}
    for density, plan in plans.items():
        kept = tokens(plan, n, dtype)
        found |= {f"{name} {density}": {"method": name, "ratio": ratio(name, kept, n)} for name in PEERS}
    return found


def measure(
    python: Path, settings: Mapping[str, Any], items: Sequence[Item], journal: Journal,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:  # fmt: skip
    """Have the other environment measure what the journal lacks, and return the versions that it measured with.

    Args:
        python: Its interpreter.
        settings: The job's `model`, `dtype` and `threads`.
        items: All that is to be in the journal at the end.
        journal: Where results are kept and looked for.
        progress: Called after each result.

    Raises:
        MoaError: It cannot be started, does not do its job, or has other versions than the journal's results.
    """
    lacking = [(item, [row for row in item.rows if journal.get(item.key(row)) is None]) for item in items]
    todo = [(item, names) for item, names in lacking if names]
    versions = key(versions=pinned())
    if todo:
        job = {**settings, "items": [{**item.what, "rows": {n: item.rows[n] for n in names}} for item, names in todo]}
        done, total = 0, sum(len(names) for _, names in todo)
        for line in _lines(python, job):
            if "about" in line:
                if journal.get(versions) not in (None, line["about"]):
                    raise MoaError(
                        f"{journal.path} has results of {journal.get(versions)}, but {python} has {line['about']}: "
                        "make the same environment, or remove that file"
                    )
                journal.put(versions, line["about"], versions=str(python))
                continue
            item = todo[line["item"]][0]
            journal.put(item.key(line["row"]), line["result"], row=line["row"], **item.about)
            done += 1
            progress(done, total, line["row"])
        if done < total:
            raise MoaError(f"{python} measured {done} of {total} results")
    return dict(journal.get(versions))


def _lines(python: Path, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what the other environment says of a job."""
    command = [python, HERE / "press.py"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with suppress(BrokenPipeError), process.stdin as stdin:  # its exit code says more
                json.dump(job, stdin)
            yield from map(json.loads, process.stdout)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        raise MoaError(f"{python} ended with exit code {process.returncode}; its own lines are above")


def row(name: str, samples: Sequence[Sample], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
    """Return a row as `moa.evaluation.summary` makes ours, from its own and the dense model's scored results."""
    asked = NEEDLES["withheld"]  # our rows' caches are measured there
    n, most = max((len(parts(sample)["context"]), i) for i, sample in enumerate(samples) if sample.task in asked)
    found: dict[str, Any] = {"length": samples[0].length, "row": name}
    found["cache"] = {"tokens": n, "allocated": results[most]["cache_bytes"], "kept": results[most]["kept_bytes"]}
    for task in TASKS.values():
        own = [(s.content, r, d) for s, r, d in zip(samples, results, dense, strict=True) if s.task == task.name]
        if own:
            found[task.name] = task.score(*zip(*own, strict=True))
    return found


def scored(tokenizer: Any, sample: Sample, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result of the other side in the form that our tasks score."""
    sizes = {name: result[name] for name in ("cache_bytes", "kept_bytes")}
    if sample.task == "tail":
        quarters = ((name, np.array_split(result[name], QUARTERS)) for name in ("nll", "kl"))
        return {name: [float(part.mean()) for part in each] for name, each in quarters} | sizes
    texts = [tokenizer.decode(ids) for ids in result["answers"]]
    right = [answered(text, q.answer) for text, q in zip(texts, sample.content.questions, strict=True)]
    return {"right": right, "answers": texts, **sizes}
