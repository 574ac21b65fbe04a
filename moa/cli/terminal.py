"""Replace characters that the terminal's encoding lacks, as with PYTHONIOENCODING=ascii."""

import codecs
import sys
from io import TextIOWrapper

SUBSTITUTES = str.maketrans("·░▒▓█→×…–—", ".:*%#>x~--")
"""Replacements of equal width; the shades of a span map and of its legend remain distinct."""


def substitute() -> None:
    """Let standard output replace what it cannot encode, where it would raise; anything else becomes its escape."""
    codecs.register_error("moa", _replace)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="moa")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(SUBSTITUTES)
    return lacking.encode("ascii", "backslashreplace").decode("ascii"), error.end
