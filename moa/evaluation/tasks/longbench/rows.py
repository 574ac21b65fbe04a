"""Read rows of a published data set, and write prompts from them that fit a length."""

import json
import random
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from moa.evaluation.tasks.answered import Answered, Prompt, asked
from moa.hf.data import load_rows
from moa.hf.tokens import encode
from moa.plans.errors import MoaError, brief
from moa.plans.replace import read

Entry = Mapping[str, Any]
"""A row of a data set."""


@dataclass(frozen=True)
class Published(Answered):
    """Rows of a data set: texts as they are, cut in the middle where they are too long.

    Attributes:
        data: A local file as the data set's authors publish it, JSON lines or a list; None loads it from the hub.
        chat: Whether prompts are a user's turn, where there is a chat template.
    """

    data: str | None = None
    chat: bool = True

    @abstractmethod
    def where(self) -> tuple[str, str | None, str]:
        """Return the data set of the hub, its configuration, and its split."""

    @abstractmethod
    def keys(self) -> Mapping[str, type]:
        """Return the columns that a row must have, with their types."""

    @abstractmethod
    def write(self, row: Entry) -> str:
        """Return the prompt of a row."""

    @abstractmethod
    def prompt(self, row: Entry, ids: tuple[int, ...]) -> Prompt:
        """Return a row's sample from its tokens."""

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Prompt]:
        """Return all rows in their order, or some that the seed draws.

        Raises:
            MoaError: There are fewer rows, they cannot be had, or have another format.
        """
        rows = _rows(self)
        if count > len(rows):
            raise MoaError(f"task {self.name} has {len(rows)} samples, found {count}")
        drawn = rows if count == len(rows) else random.Random(f"{seed}/{self.name}").sample(rows, count)
        return [self.prompt(row, self._fitted(tokenizer, self.write(row), length)) for row in drawn]

    def _fitted(self, tokenizer: Any, text: str, length: int) -> tuple[int, ...]:
        """Return the tokens of a prompt; of a longer one, as LongBench does, as much of both ends as there is room for.

        Raises:
            MoaError: There is no room for any text.
        """
        room, ids = length - self.new_tokens, asked(tokenizer, text, chat=self.chat)
        if len(ids) <= room:
            return tuple(ids)
        inner = encode(tokenizer, text)
        half = (room - len(ids) + len(inner)) // 2
        while half > 0:
            ends = (
                tokenizer.decode(part, clean_up_tokenization_spaces=False) for part in (inner[:half], inner[-half:])
            )
            ids = asked(tokenizer, "".join(ends), chat=self.chat)
            if len(ids) <= room:
                return tuple(ids)
            half -= -(-(len(ids) - room) // 2)  # what is decoded may have a few tokens more
        raise MoaError(f"task {self.name} allows {self.new_tokens} tokens for an answer; found length {length}")


@cache
def _rows(task: Published) -> list[Entry]:
    """Return a task's rows.

    Raises:
        MoaError: They cannot be had, or have another format.
    """
    keys = task.keys()
    if task.data is None:
        name, config, split = task.where()
        rows: list[Any] = load_rows(name, columns=list(keys), config=config, split=split)[0]
    else:
        rows = _local(Path(task.data))
    source = task.data or f"{task.where()[0]} of the hub"
    for i, row in enumerate(rows, 1):
        found = row if isinstance(row, dict) else {}
        wrong = next((key for key, kind in keys.items() if not isinstance(found.get(key), kind)), None)
        if wrong is not None:
            what = ", ".join(f"{key} ({kind.__name__})" for key, kind in keys.items())
            raise MoaError(f"{source}, row {i}: {task.name} takes {what}; {wrong} is {brief(found.get(wrong))}")
    if not rows:
        raise MoaError(f"{source} has no rows")
    return rows


def _local(path: Path) -> list[Any]:
    text = read(path)
    try:
        if text.lstrip().startswith(b"["):
            return list(json.loads(text))
        return [json.loads(line) for line in text.splitlines() if line.strip()]  # bytes: texts hold other breaks
    except (ValueError, RecursionError) as error:
        raise MoaError(f"{path} is neither JSON lines nor a list in JSON: {brief(str(error))}") from None
