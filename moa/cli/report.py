"""`moa report DIR`: write the page about what `moa compress` found."""

from pathlib import Path
from typing import Annotated

import typer


def command(folder: Annotated[Path, typer.Argument(help="Folder of `moa compress`.")]) -> None:
    """Write FOLDER/report.html again: the pictures, tables and figures of one `moa compress`, without a network.

    Example: moa report smollm2
    """
    from rich.console import Console

    import moa

    path = moa.write_report(folder)
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"wrote {path}")
