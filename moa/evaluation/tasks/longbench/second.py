"""Ask LongBench v2 (arXiv 2412.15204): questions about long texts, with four choices each."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from moa.evaluation.tasks.answered import Prompt
from moa.evaluation.tasks.longbench.rows import Entry, Published

PROMPT = (
    "{context}\n\nA question about the text above follows, with four answers of which one is right.\n\nQuestion: "
    "{question}\n(A) {choice_A}\n(B) {choice_B}\n(C) {choice_C}\n(D) {choice_D}\n\n"
    'Reply with one line such as "The correct answer is (A)".'
)
COLUMNS = ("context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer")


@dataclass(frozen=True)
class Choices(Published):
    """Questions whose answer is a letter."""

    def where(self) -> tuple[str, str | None, str]:
        """Return the authors' data set."""
        return "zai-org/LongBench-v2", None, "train"

    def keys(self) -> Mapping[str, type]:
        """Return text, question, choices and the right letter."""
        return dict.fromkeys(COLUMNS, str)

    def write(self, row: Entry) -> str:
        """Return a prompt that asks for the letter, without reasoning."""
        return PROMPT.format(**{name: row[name].strip() for name in COLUMNS})

    def prompt(self, row: Entry, ids: tuple[int, ...]) -> Prompt:
        """Return a sample with its letter."""
        return Prompt(ids, (row["answer"],))

    def mark(self, text: str, prompt: Prompt) -> float:
        """Return 1 if the letter that the answer names is right."""
        return float(letter(text) == prompt.answers[0])

    def known(self, text: str, prompt: Prompt) -> bool:
        """Return whether the answer names a letter in brackets, which counts before one without."""
        return bool(_BRACKETED.search(text.replace("*", "")))


_BRACKETED = re.compile(r"The correct answer is \(([A-D])\)")


def letter(text: str) -> str | None:
    """Return the letter that an answer names, as LongBench finds it; None if it names none."""
    said = text.replace("*", "")
    found = _BRACKETED.search(said) or re.search(r"The correct answer is ([A-D])", said)
    return found[1] if found else None


TASKS = (Choices("longbench:v2", ("longbench:v2",), 0, "questions of LongBench v2", 128),)
