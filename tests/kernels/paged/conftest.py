"""The oracle of reads as the fixture `paged`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from page_oracle import paged  # noqa: F401  (pytest finds fixtures by their names here)
