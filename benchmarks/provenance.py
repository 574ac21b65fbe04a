"""What a result file says of the run that wrote it."""

import subprocess
import sys
from datetime import date
from os.path import relpath
from pathlib import Path

from moa.environment import environment

ROOT = Path(__file__).parents[1]


def provenance() -> dict[str, str | int]:
    """Command, commit (`+` where files differ from it), date, machine and versions of this run."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "command": " ".join(["python", relpath(sys.argv[0], ROOT), *sys.argv[1:]]),
        "commit": git("rev-parse", "--short=12", "HEAD") + changed,
        "date": date.today().isoformat(),
        **environment(),
    }
