"""Lets the tests share what finds blocks of code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
