"""Define what a task of the evaluation is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from moa.evaluation.rows import Row


@dataclass(frozen=True)
class Task(ABC):
    """A kind of samples that every row is measured on.

    Attributes:
        name: Its key in results, and in `moa eval --task NAME=COUNT`.
        columns: Headings of its figures in the table.
        default: Number of samples per length if the user gives none.
        counted: What its samples are, for messages.
    """

    name: str
    columns: tuple[str, ...]
    default: int
    counted: str

    dense_besides: ClassVar[bool] = False
    """Whether a sample runs the dense model in addition to the rows."""

    @abstractmethod
    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> Sequence[Any]:
        """Return `count` samples of `length` tokens; results are stored under their `repr`, which must be complete."""

    @abstractmethod
    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: Any
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's result of one sample, in JSON types; `cache_bytes` in it is the size of the row's cache."""

    def cached(self, content: Any) -> int:
        """Return the number of tokens in the cache of `cache_bytes`; only a task with such results needs this."""
        raise NotImplementedError

    @abstractmethod
    def score(self, contents: Sequence[Any], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return a row's entry in the results: of all samples, with the dense model's results of the same ones."""

    @abstractmethod
    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return the entry's cells under `columns`."""
