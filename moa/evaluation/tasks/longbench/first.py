"""Ask LongBench's tasks in English (arXiv 2308.14508): questions, summaries, few examples, code."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.longbench.metrics import Metric, classified, counted, f1, is_code, rouge_l, similar
from moa.evaluation.tasks.longbench.prompts import PROMPTS, prompt_of
from moa.evaluation.tasks.longbench.rows import Entry, Published

DATA = "Xnhyacinth/LongBench"
"""The same rows as tables: the authors' own repository has a program that loads them, which is not run."""

METRICS: dict[str, Metric] = {
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), rouge_l),
    **dict.fromkeys(("passage_count", "passage_retrieval_en"), counted),
    **dict.fromkeys(("lcc", "repobench-p"), similar),
    "trec": classified,
}
"""Of the other tasks it is F1."""
ONE_LINE = ("trec", "triviaqa", "samsum")
"""Tasks whose answer is the first line."""
EXAMPLES = (*ONE_LINE, "lcc", "repobench-p")
"""Tasks that are texts to continue, not turns of a chat."""


@dataclass(frozen=True)
class Classed(Prompt):
    """A prompt with the names of all classes, of a task that asks for one."""

    classes: tuple[str, ...]


@dataclass(frozen=True)
class LongBench(Published):
    """One task of LongBench: a row has a context, an input (the question), right answers and names of classes.

    Attributes:
        task: Its name there.
        metric: Its score against one right answer.
    """

    task: str = ""
    metric: Metric = f1

    @classmethod
    def of(cls, task: str) -> "LongBench":
        """Return the task of a name of LongBench's."""
        name, (tokens, _) = f"longbench:{task}", PROMPTS[task]
        return cls(
            name, (name,), 0, f"samples of LongBench's {task}", tokens, chat=task not in EXAMPLES, task=task,
            metric=METRICS.get(task, f1),
        )  # fmt: skip

    def where(self) -> tuple[str, str | None, str]:
        """Return the data set, and the task as its configuration."""
        return DATA, self.task, "test"

    def keys(self) -> Mapping[str, type]:
        """Return a row's text, question and right answers, and the names of classes where the score asks for them."""
        classes = {"all_classes": list} if self.metric is classified else {}
        return {"context": str, "input": str, "answers": list, **classes}

    def write(self, row: Entry) -> str:
        """Return the task's prompt with the row's text and question."""
        places = {"{context}": row["context"], "{input}": row["input"]}
        return re.sub("{context}|{input}", lambda place: str(places[place[0]]), prompt_of(self.task, self.data))

    def prompt(self, row: Entry, ids: tuple[int, ...]) -> Prompt:
        """Return a sample with the right answers, each of which is enough."""
        return Classed(
            ids,
            tuple(map(str, row["answers"])),
            tuple(map(str, row["all_classes"])) if self.metric is classified else (),
        )

    def mark(self, text: str, prompt: Prompt) -> float:
        """Return the best score against any right answer."""
        said = text.lstrip("\n").split("\n")[0] if self.task in ONE_LINE else text
        classes = prompt.classes if isinstance(prompt, Classed) else ()
        return max((self.metric(said, answer, classes) for answer in prompt.answers), default=0.0)

    def known(self, text: str, prompt: Prompt) -> bool:
        """Return whether the line that counts has ended."""
        lines: Sequence[str] = text.lstrip("\n").split("\n")[:-1]
        if self.task in ONE_LINE:
            return bool(lines)
        return self.metric is similar and any(map(is_code, lines))

    def score(self, contents: Sequence[Prompt], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return the mean under `score`: it is no rate of what was found, so no effective length follows from it."""
        found = super().score(contents, results, dense)
        return {"score" if key == "rate" else key: value for key, value in found.items()}

    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return the mean score with its 95 % interval."""
        return super().cells({**score, "rate": score["score"]})
