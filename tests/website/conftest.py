"""Lets the tests import what makes the site."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "website"))
