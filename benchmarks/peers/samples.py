"""Make the samples that both sides read: token ids from our tokenizer alone.

A text is asked about in two ways. Withheld, it is compressed before any question is known. Given, the question stands
at its end and is compressed with it; only what follows the question, up to where the answer starts, comes afterwards:
were it compressed too, the first word of the answer would come from the whole prefill.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from held_out import TASKS as HELD_OUT

from moa.evaluation.haystack import Haystack, Question, frame
from moa.evaluation.samples import Sample
from moa.evaluation.tasks.decoded import Decoded, tail
from moa.evaluation.tasks.needles import ANSWER_TOKENS, Needles
from moa.plans.errors import MoaError

TAIL = 128
"""Tokens of a window of text that are decoded behind a compressed cache, which grows by them."""


@dataclass(frozen=True)
class Given(Needles):
    """The texts of `Needles`, each with one of its questions at its end; which one changes from text to text."""

    def samples(self, tokenizer: Any, length: int, count: int, seed: int) -> list[Haystack]:
        """Return the haystacks."""
        found = super().samples(tokenizer, length, count, seed)
        return [given(tokenizer, hay, i % len(hay.questions)) for i, hay in enumerate(found)]


def given(tokenizer: Any, hay: Haystack, which: int) -> Haystack:
    """Return the text with a question at its end, about which it is asked with the rest of the question's prompt."""
    question, after = hay.questions[which], frame(tokenizer)[1]
    ends = range(len(question.ids), -1, -1)
    end = next((end for end in ends if after in tokenizer.decode(question.ids[end:])), None)
    if end is None:
        raise MoaError(f"the tokenizer must give back the prompt between question and answer, {after!r}")
    return Haystack((*hay.ids, *question.ids[:end]), (Question(question.ids[end:], question.answer, question.depth),))


@dataclass(frozen=True)
class Tail(Decoded):
    """The windows of `Decoded`, whose score has the KL of every window too."""

    def score(self, contents: Sequence[list[int]], results: Sequence[Any], dense: Sequence[Any]) -> dict[str, Any]:
        """Return perplexity and KL."""
        each = [fmean(result["kl"]) for result in results]
        return super().score(contents, results, dense) | {"kl_by_window": each}


def _given(name: str) -> Given:
    like = HELD_OUT[name]
    return Given(f"{name} given", tuple(f"{column}, given" for column in like.columns), 0, like.counted, like.needles,
                 like.formats)  # fmt: skip


TASKS = {
    "single": HELD_OUT["single"],
    "four": HELD_OUT["four"],
    "single given": _given("single"),
    "four given": _given("four"),
    "tail": Tail("tail", ("perplexity", "KL, nats"), 0, "windows of held-out text", TAIL),
}
"""The tasks of this comparison, by name."""
NEEDLES = {"withheld": ("single", "four"), "given": ("single given", "four given")}
"""The tasks with needles, by whether the question is known when the text is compressed."""


def known(row: dict[str, Any], dense: dict[str, Any], samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the entries of given questions in a row of ours, from those of the same questions withheld.

    What a plan keeps depends on no question, and calls may be split anywhere: both ways give the same answers.
    """
    found = {}
    for withheld, name in zip(*NEEDLES.values(), strict=True):
        task, own = TASKS[name], [sample.content for sample in samples if sample.task == name]
        places = [i * task.needles + i % task.needles for i in range(len(own))]
        results = [[{"right": [each[withheld]["by_question"][i] == "1"]} for i in places] for each in (row, dense)]
        found[name] = task.score(own, *results)
    return found


def parts(sample: Sample) -> dict[str, Any]:
    """Return the tokens of a sample that are compressed, and what follows them, as a job for the other side says it."""
    if sample.task != "tail":
        hay = sample.content
        return {"kind": "asked", "context": hay.ids, "then": [q.ids for q in hay.questions], "new": ANSWER_TOKENS}
    end = len(sample.content) - tail(sample.content, TAIL)
    return {"kind": "decoded", "context": sample.content[:end], "then": [sample.content[end:]]}
