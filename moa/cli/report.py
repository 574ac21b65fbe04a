"""`moa report DIR`: write the page about what `moa compress` found."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    folder: Annotated[Path, typer.Argument(help="Folder of `moa compress`.")],
    png: Annotated[
        bool, typer.Option("--png", help="Also draw the pictures into PNG files in FOLDER, with matplotlib.")
    ] = False,
) -> None:
    """Write FOLDER/report.html again: the pictures, tables and figures of one `moa compress`, without a network.

    Example: moa report smollm2 --png
    """
    from rich.console import Console

    import moa

    paths = [moa.write_report(folder), *(moa.write_pictures(folder) if png else ())]
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"wrote {', '.join(map(str, paths))}")
