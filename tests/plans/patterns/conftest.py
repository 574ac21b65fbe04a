"""Lets the tests of patterns share the contract."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
