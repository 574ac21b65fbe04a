"""The user's own calibration documents: a local file or a data set of the hub, through `datasets`."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError
from moa.profiler.calibration import Sample, Source, whole_text

FORMATS = {".jsonl": "json", ".json": "json", ".txt": "text", ".parquet": "parquet"}


def load_documents(spec: str) -> list[tuple[str, str]]:
    """Documents as (prompt, response) texts.

    Args:
        spec: A `.jsonl`, `.txt` or `.parquet` file, or `hub:NAME` for a data set of the hub (its `train` split).
            Rows have a column `text`, measured whole, or `prompt` and `response`, of which the response is measured.
            A `.txt` file is one document.

    Returns:
        One pair per document; the prompt of a `text` row is empty.

    Raises:
        MoaError: No such file, another format, unreadable rows, columns missing, or a row without text.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    local, path = not spec.startswith("hub:"), Path(spec)
    if local and path.suffix not in FORMATS:
        raise MoaError(f"data must be {', '.join(FORMATS)} or hub:NAME, found {spec!r}")
    if local and not path.is_file():
        raise MoaError(f"no data file at {spec}")
    extra = {"sample_by": "document"} if path.suffix == ".txt" else {}
    try:
        if local:
            with _quiet():
                rows = load_dataset(FORMATS[path.suffix], data_files=str(path), split="train", **extra)
        else:
            rows = load_dataset(spec.removeprefix("hub:"), split="train")
    except StopIteration:  # what comes of a .jsonl file without a row
        return []
    except (DatasetsError, OSError, ValueError) as e:
        raise MoaError(f"cannot read data {spec}: {str(e.__cause__ or e).splitlines()[0]}") from e
    columns = set(rows.column_names)
    if "text" in columns:
        return [("", text) for text in _texts(rows, "text", spec)]
    if {"prompt", "response"} <= columns:
        return list(zip(_texts(rows, "prompt", spec), _texts(rows, "response", spec), strict=True))
    raise MoaError(f"data {spec} needs a column text, or prompt and response; found {', '.join(sorted(columns))}")


def _texts(rows: Any, column: str, spec: str) -> list[str]:
    """A column in which every row has text."""
    texts = list(rows[column])
    wrong = [number for number, text in enumerate(texts, start=1) if not isinstance(text, str)]
    if wrong:
        raise MoaError(
            f"data {spec} must have text in every row of the column {column}; {len(wrong)} of {len(texts)} have none, "
            f"the first is row {wrong[0]}: {texts[wrong[0] - 1]!r}"
        )
    return texts


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no log lines of `datasets`: what is wrong with a file is said once, by us."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    bars, level = not are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


def document_source(spec: str, tokenizer: Any, lengths: Sequence[int]) -> Source:
    """A source named `data` that draws from the documents long enough for each length.

    Raises:
        MoaError: No document reaches the longest length; says how many of which length were found.
    """
    encoded = []
    for prompt, response in load_documents(spec):
        head, tail = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (prompt, response))
        if tail:
            encoded.append((head, tail))
    sizes = sorted(len(head) + len(tail) for head, tail in encoded)
    if not sizes or sizes[-1] < max(lengths):
        found = f"{len(sizes)} documents, the longest of {sizes[-1]} tokens" if sizes else "no documents"
        raise MoaError(f"data {spec} must hold a document of at least {max(lengths)} tokens, found {found}")

    def draw(tokenizer: Any, length: int, rng: random.Random, chat: bool) -> Sample:
        head, tail = rng.choice([d for d in encoded if len(d[0]) + len(d[1]) >= length])
        ids = head + tail
        if not head:  # text: any window of it
            start = rng.randrange(len(ids) - length + 1)
            return whole_text(ids[start : start + length])
        ids = ids[-length:]  # a prompt that is too long loses its beginning
        answer = min(len(tail), length - 1)
        return Sample(tuple(ids), tuple(range(length - answer, length)))

    return Source("data", draw, "sampled", "nll", digest=hashlib.sha256(repr(encoded).encode()).hexdigest())
