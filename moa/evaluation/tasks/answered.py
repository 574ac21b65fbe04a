"""Define tasks whose prompts are answered greedily, each from a cache of its own, and whose answers are scored."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from moa.evaluation.greedy import greedy, last_logits
from moa.evaluation.interval import wilson
from moa.evaluation.prefills import Prefills
from moa.evaluation.rows import Row
from moa.evaluation.tasks.task import Task
from moa.hf.chat import MARK, has_template, pieces
from moa.hf.tokens import begin, encode
from moa.runtime.variant import allocated_bytes


@dataclass(frozen=True)
class Prompt:
    """A prompt, and the texts that its answer is compared with."""

    ids: tuple[int, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Answered(Task):
    """A task of prompts, whose answers get a score from 0 to 1.

    Attributes:
        new_tokens: Tokens generated at most; prompt and answer together fit into a sample's length.
    """

    new_tokens: int = 128

    @abstractmethod
    def mark(self, text: str, prompt: Prompt) -> float:
        """Return the score of an answer, from 0 to 1."""

    @abstractmethod
    def known(self, text: str, prompt: Prompt) -> bool:
        """Return whether more text would not change the score."""

    def measure(
        self, model: Any, tokenizer: Any, rows: Sequence[Row], content: Prompt
    ) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield each row's answer and its score."""
        length = len(content.ids)
        read = Prefills(model, rows, length + self.new_tokens, lambda cache: last_logits(model, cache, content.ids, 0))
        for row in rows:
            cache, logits = read.under(row)
            with row.variant.on(model):
                text = greedy(
                    model, tokenizer, cache, logits, length, self.new_tokens, lambda said: self.known(said, content)
                )
                yield row, {"score": self.mark(text, content), "answer": text, "cache_bytes": allocated_bytes(cache)}

    def cached(self, content: Prompt) -> int:
        """Return the prompt's length."""
        return len(content.ids)

    def score(self, contents: Sequence[Prompt], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return the mean score with Wilson's interval, which is at least as wide as scores between 0 and 1 need."""
        marks, base = ([r["score"] for r in each] for each in (results, dense))
        rate = mean(marks)
        return {
            "samples": len(marks), "rate": rate, "interval": list(wilson(sum(marks), len(marks))),
            "kept": rate / mean(base) if any(base) else None, "by_sample": marks,
        }  # fmt: skip

    def cells(self, score: dict[str, Any]) -> list[str]:
        """Return the mean score with its 95 % interval."""
        low, high = score["interval"]
        return [f"{score['rate']:.2f} ({low:.2f} to {high:.2f})"]


def asked(tokenizer: Any, question: str, lead: str = "", *, chat: bool = True) -> list[int]:
    """Return a prompt's tokens: a user's turn where there is a chat template; it ends with the lead of the answer."""
    if not chat or not has_template(tokenizer):
        return begin(tokenizer, encode(tokenizer, f"{question} {lead}" if lead else question))
    before, after = pieces(tokenizer, [{"role": "user", "content": MARK}], answer=True)
    return begin(tokenizer, encode(tokenizer, f"{before}{question}{after}{lead}"))
