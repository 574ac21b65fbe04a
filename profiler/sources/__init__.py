"""List the sources of calibration text by name. A source is a file in this folder and its place in this list."""

from moa.profiler.calibration import Source
from moa.profiler.sources import facts, lines, pairs, text

SOURCES: dict[str, Source] = {each.SOURCE.name: each.SOURCE for each in (text, facts, pairs, lines)}
DEFAULT = tuple(name for name, source in SOURCES.items() if source.default)
"""Sources used when none is named."""
