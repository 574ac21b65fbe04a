"""Load data sets of the hub through `datasets`."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moa.plans.errors import MoaError, brief, shortened

HUB = "hub:"
"""What the name of a data set of the hub follows, where a file could stand too."""
_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


def load_rows(
    name: str, *, columns: Sequence[str], config: str | None = None, split: str = "train"
) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the rows of a split of a data set of the hub, and the names of all its columns.

    Args:
        name: The data set.
        columns: Columns that the rows have; of these, those that are there.
        config: Its configuration, where it has several.
        split: Its split.

    Raises:
        MoaError: It cannot be had or read, or a file or folder here has its name.
    """
    from datasets import load_dataset

    try:
        if not _NAME.fullmatch(name):  # which `datasets` may take for a path, a pattern or a URL
            raise MoaError(f"a data set of the hub is NAME or OWNER/NAME, found {brief(name)}")
        if Path(name).exists():
            raise MoaError(f"{name} is here too, and would be read instead: move it, or name a file in it")
        with _quiet():
            found = load_dataset(name, config, split=split)
            names = found.column_names
            return list(found.select_columns([each for each in columns if each in names])), names
    except Exception as error:  # each way to get and to read a data set has errors of its own
        reason = str(error.__cause__ or error) or type(error).__name__
        raise MoaError(f"cannot read data {HUB}{name}: {shortened(reason, 200)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the bars and log lines of `datasets`: errors of a data set are reported once, by the caller."""
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
