"""Load the user's own calibration documents from a local file, or a data set of the hub through `datasets`."""

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from moa.hf.chat import MARK, has_template, pieces
from moa.hf.data import HUB, load_rows
from moa.hf.tokens import begin, chat_tokens, encode, start
from moa.plans.errors import MoaError, brief, shortened
from moa.profiler.calibration import Sample, Source, whole_text
from moa.profiler.files import COLUMNS, FORMATS, Rows, read_rows

_HALF = re.compile("[\ud800-\udfff]")


def load_documents(spec: str) -> list[tuple[str | None, str]]:
    """Return the documents as (prompt, response) texts.

    Args:
        spec: A file with an ending of `moa.profiler.files.FORMATS`, or `hub:NAME` for a data set of the hub (its
            `train` split). Rows have a column `text`, measured whole, or `prompt` and `response`, of which the response
            is measured. A `.txt` file is one document.

    Returns:
        One pair per document; the prompt of a `text` row is None.

    Raises:
        MoaError: The file is missing, has another format, unreadable rows or missing columns, or a row has no text.
    """
    if spec.startswith(HUB):
        rows = _hub(spec.removeprefix(HUB))
    elif Path(spec).suffix not in FORMATS:
        raise MoaError(f"data must be {', '.join(FORMATS)} or {HUB}NAME, found {spec}")
    elif not Path(spec).is_file():
        raise MoaError(f"no data file at {spec}")
    else:
        rows = read_rows(Path(spec))
    if not rows.kept:
        return []
    if "text" in rows.names:
        return [(None, text) for text in _texts(rows, "text", spec)]
    if {"prompt", "response"} <= rows.names:
        return list(zip(_texts(rows, "prompt", spec), _texts(rows, "response", spec), strict=True))
    found = shortened(", ".join(sorted(map(str, rows.names))), 200)
    raise MoaError(f"data {spec} needs a column text, or prompt and response; found {found}")


def _texts(rows: Rows, column: str, spec: str) -> list[str]:
    """Return a column in which every row has text."""
    texts: list[Any] = [row.get(column) for row in rows.kept]
    wrong = [number for number, text in enumerate(texts, start=1) if not _is_text(text)]
    if wrong:
        raise MoaError(
            f"data {spec} must have text in every row of the column {column}; {len(wrong)} of {len(texts)} have none, "
            f"the first is row {wrong[0]}: {brief(texts[wrong[0] - 1])}"
        )
    return texts


def _is_text(value: Any) -> bool:
    """Return whether a tokenizer takes the value: a string without half a surrogate pair, which JSON can hold."""
    return isinstance(value, str) and not _HALF.search(value)


def _hub(name: str) -> Rows:
    """Return the rows of a data set of the hub."""
    rows, names = load_rows(name, columns=COLUMNS)
    return Rows(rows, set(names))


@dataclass(frozen=True)
class Document:
    """The tokens of a document.

    Attributes:
        first: Tokens that every sample of it begins with: the tokenizer's first tokens, and the chat template's.
        prompt: The rest of the tokens that are not scored; empty for a plain text.
        response: The tokens that are scored.
    """

    first: list[int]
    prompt: list[int]
    response: list[int]

    def __len__(self) -> int:
        return len(self.first) + len(self.prompt) + len(self.response)

    def sample(self, length: int, rng: random.Random) -> Sample:
        """Return a window of a plain text behind `first`; of a prompt and response that are too long, the end."""
        room = length - len(self.first)
        ids = self.prompt + self.response
        if not self.prompt:
            at = rng.randrange(len(ids) - room + 1)
            return whole_text([*self.first, *ids[at : at + room]])
        answer = min(len(self.response), room, length - 1)
        return Sample((*self.first, *ids[-room:]), tuple(range(length - answer, length)))


def document_source(spec: str, tokenizer: Any, lengths: Sequence[int], chat: bool = True) -> Source:
    """Return a source named `data` that draws from the documents long enough for each length.

    Args:
        spec: As `load_documents` takes it.
        tokenizer: Any transformers tokenizer.
        lengths: Tokens of the samples to be drawn.
        chat: Whether a prompt is a user's turn by the tokenizer's chat template, when it has one.

    Raises:
        MoaError: No document reaches the longest length; the error says how many of which length were found.
    """
    pairs = load_documents(spec)
    asked = any(prompt is not None for prompt, _ in pairs)
    opening = _opening(tokenizer) if asked and chat and has_template(tokenizer) else None
    documents = [_document(tokenizer, prompt, response, opening) for prompt, response in pairs]
    documents = [d for d in documents if d.response]
    longest = max(map(len, documents), default=0)
    if longest < max(lengths):
        found = f"{len(documents)} documents, the longest of {longest} tokens" if documents else "no documents"
        raise MoaError(f"data {spec} must hold a document of at least {max(lengths)} tokens, found {found}")
    if (most := max(len(d.first) for d in documents)) > min(lengths) // 2:
        raise MoaError(f"length {min(lengths)} must be twice what the chat template begins with, found {most} tokens")

    def draw(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
        return rng.choice([d for d in documents if len(d) >= length]).sample(length, rng)

    told = repr([(d.first + d.prompt, d.response) for d in documents])
    return Source("data", draw, "sampled", "nll", digest=hashlib.sha256(told.encode()).hexdigest())


def _opening(tokenizer: Any) -> list[int]:
    """Return what a chat begins with, before the user's words."""
    before, _ = pieces(tokenizer, [{"role": "user", "content": MARK}], answer=True)
    return begin(tokenizer, encode(tokenizer, before))


def _document(tokenizer: Any, prompt: str | None, response: str, opening: list[int] | None) -> Document:
    """Return a document as the model meets it in use: a text, or a prompt (in a chat, if possible) and a response."""
    first, measured = start(tokenizer), encode(tokenizer, response)
    if prompt is None:
        return Document(first, [], begin(tokenizer, measured)[len(first) :])
    if opening is None:
        return Document(first, begin(tokenizer, encode(tokenizer, prompt))[len(first) :], measured)
    asked = chat_tokens(tokenizer, [{"role": "user", "content": prompt}], answer=True)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(asked, opening, strict=False))
    at = sum(1 for _ in same)  # a token may span the border
    return Document(asked[:at], asked[at:], measured)
