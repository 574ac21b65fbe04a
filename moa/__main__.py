"""Run the `moa` command as `python -m moa` (so that `torchrun -m moa profile …` works)."""

import sys

from moa.cli.main import main

sys.exit(main())
