"""Define the samples that rows are measured on: so many of each task, at one length."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moa.evaluation.tasks import TASKS
from moa.evaluation.tasks.task import Task
from moa.hf.limits import check_length
from moa.plans.errors import MoaError, brief


@dataclass(frozen=True)
class Sample:
    """A sample that every row is measured on.

    Attributes:
        task: The task's name.
        length: The length, in tokens.
        index: Its number among those of its task and length.
        content: The sample itself, as the task made it.
    """

    task: str
    length: int
    index: int
    content: Any


@dataclass(frozen=True)
class Part:
    """The samples measured at one length.

    Attributes:
        length: The length, in tokens.
        counts: Number of samples of each task, by its name.
        tasks: The tasks by name.
    """

    length: int
    counts: Mapping[str, int]
    tasks: Mapping[str, Task] = field(default_factory=lambda: TASKS)

    def check(self, model: Any) -> None:
        """Refuse what cannot be measured.

        Raises:
            MoaError: Something cannot be measured; the error names the rule, the value and the valid choices.
        """
        check_length(model, self.length)
        if unknown := [name for name in self.counts if name not in self.tasks]:
            raise MoaError(f"tasks must be of {', '.join(self.tasks)}, found {', '.join(map(brief, unknown))}")
        if not self.counts or min(self.counts.values()) < 0 or not any(self.counts.values()):
            kinds = ", ".join(f"{self.tasks[name].counted} ({count})" for name, count in self.counts.items() if count)
            raise MoaError(
                f"samples of tasks must be 0 or more, and of one of them at least 1; found {kinds or 'none'}"
            )

    def samples(self, tokenizer: Any, seed: int) -> list[Sample]:
        """Return all samples of the length."""
        found = []
        for name, count in self.counts.items():
            drawn = self.tasks[name].samples(tokenizer, self.length, count, seed) if count else []
            found += [Sample(name, self.length, i, content) for i, content in enumerate(drawn)]
        return found
