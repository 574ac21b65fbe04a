"""The texts that are read: pieces of this repository's guides."""

from pathlib import Path
from typing import Any

import numpy as np


def texts(tokenizer: Any, lengths: list[int]) -> list[list[int]]:
    """Return the ids of a piece for each length, each from another place."""
    pages = sorted((Path(__file__).parents[2] / "docs").glob("*.md"))
    ids = tokenizer.encode("".join(page.read_text() for page in pages))
    starts = np.linspace(0, len(ids) - max(lengths) - 1, len(lengths)).astype(int)
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
