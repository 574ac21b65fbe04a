"""`python -m moa`: the same as the `moa` command (so that `torchrun -m moa profile …` works)."""

import sys

from moa.cli.main import main

sys.exit(main())
