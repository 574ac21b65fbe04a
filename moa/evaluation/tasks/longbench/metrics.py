"""Score answers as LongBench does, each against one right answer, from 0 to 1."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from moa.plans.errors import MoaError

Metric = Callable[[str, str, Sequence[str]], float]
"""Function from an answer, the right one, and the names of all classes to a score."""

_MISSING = "LongBench's scores need rouge and rapidfuzz: pip install 'moa-attention[eval]'"
_DELETED = str.maketrans("", "", string.punctuation)


def f1(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the F1 of words, as SQuAD's: without case, punctuation and articles."""
    said, wanted = _words(text), _words(answer)
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted)) if same else 0.0


def _words(text: str) -> list[str]:
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_DELETED)).split()


def rouge_l(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the F of ROUGE-L over the sentences, by the library that LongBench takes; 0 where it has no figure.

    Raises:
        MoaError: `rouge` is not installed.
    """
    try:
        from rouge import Rouge
    except ImportError:
        raise MoaError(_MISSING) from None
    try:
        return float(Rouge(metrics=["rouge-l"], stats=["f"]).get_scores(text, answer)[0]["rouge-l"]["f"])
    except (ValueError, RecursionError):  # an empty text; a sentence of a thousand words
        return 0.0


def classified(text: str, answer: str, classes: Sequence[str]) -> float:
    """Return 1 over the number of classes that the text names, if the right one is among them.

    Names within the right one's do not count: `Lake` in `Lake or mountain`.
    """
    named = [name for name in classes if name in text and (name == answer or name not in answer)]
    return 1 / len(named) if answer in named else 0.0


def counted(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return the part of the numbers in the text that are the right answer's first."""
    said, wanted = re.findall(r"\d+", text), re.findall(r"\d+", answer)
    return said.count(wanted[0]) / len(said) if said and wanted else 0.0


def similar(text: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Return how similar the first line of code is to the right one, in whole per cent of the edit distance.

    Raises:
        MoaError: `rapidfuzz` is not installed.
    """
    try:
        from rapidfuzz import fuzz
    except ImportError:
        raise MoaError(_MISSING) from None
    line = next((each for each in text.lstrip("\n").split("\n") if is_code(each)), "")
    return round(fuzz.ratio(line, answer)) / 100


def is_code(line: str) -> bool:
    """Return whether LongBench takes a line as code: nothing in it marks a comment or a fence."""
    return not any(mark in line for mark in ("`", "#", "//"))
