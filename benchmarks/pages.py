"""Write the measured figures of README.md, docs/*.md and the shipped plans from the files in benchmarks/results.

A block of a page stands between `<!-- figures: NAME -->` and `<!-- end -->`; BLOCKS says which function writes it, from
which result file. Each block ends with a line that says how that file was made. Blocks about the shipped plans are
written from the plan files: one looks for them in several result files, one is calculated. A block whose file is not
there yet says so.

    python benchmarks/pages.py            writes all blocks
    python benchmarks/pages.py --check    names blocks that differ from their file; exit code 1 if there are any

A measured figure outside blocks is a fault as well (`pages_parts/loose.py`), except in docs/experiments, whose pages
are records of what was measured once.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pages_parts import others, peers, profile, quality, reads, search, served, serving, shipped, speed, tasks
from pages_parts.common import RESULTS, Figures, load, made, missing

from moa.plans.errors import MoaError
from moa.plans.replace import replace

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^<!-- figures: (.+?) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https:|#)")

BLOCKS: dict[str, tuple[Callable[[Figures], str], str]] = {
    "quality": (quality.quality, "elastic"),
    "quality aims": (quality.aims, "elastic"),
    "quality aims, 8k": (quality.aims, "elastic-8k"),
    "quality aims, beyond": (quality.aims, "elastic-beyond"),
    "baselines": (quality.baselines, "baselines"),
    "peers": (peers.peers, "peers"),
    "peers, short": (peers.short, "peers"),
    "tasks": (tasks.tasks, "tasks"),
    "tasks, 4k": (tasks.tasks, "tasks-4k"),
    "tasks, 8k": (tasks.tasks, "tasks-8k"),
    "tasks, short": (tasks.short, "tasks"),
    "reads, 2k": (reads.quality, "reads-2k"),
    "reads, 4k": (reads.quality, "reads-4k"),
    "reads, 8k": (reads.quality, "reads-8k"),
    "reads, baselines": (reads.baselines, "reads_baselines"),
    "reads, truth": (profile.reads, "reads_truth"),
    "speed": (speed.speed, "cpu"),
    "speed, all": (speed.whole, "cpu"),
    "bounds": (speed.bounds, "cpu"),
    "attention": (speed.attention, "attention_cpu"),
    "extrapolation": (search.extrapolation, "extrapolation"),
    "solver": (search.solver, "solver"),
    "costs": (search.costs, "cost_model"),
    "study": (search.study, "study"),
    "truth": (profile.truth, "influence_truth"),
    "profile cost": (profile.cost, "profile_cost"),
    "models": (others.models, "models"),
    "pass through": (others.pass_through, "pass_through"),
    "fuzz": (others.fuzz, "fuzz_cli"),
    "compiled": (others.compiled, "triton-aot"),
    "roofline": (others.roofline, "roofline"),
    "serving, exact": (serving.exact, "serving-exact"),
    "serving, speed": (serving.speed, "serving-speed"),
}
TARGETS = {"serving-exact": "serving", "serving-speed": "serving"}
"""The targets of the Makefile that measure what `make bench` does not, by result file."""
OWN: dict[str, Callable[[], str]] = {
    "shipped plans": shipped.shipped, "vLLM": served.freed, "reads, short": reads.short,
}  # fmt: skip
"""Blocks that look for result files themselves, or calculate."""
NAMES = *BLOCKS, *OWN


def pages() -> list[Path]:
    """Return the pages that show current figures; records of experiments are not among them."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *(ROOT / "plans").glob("library/README.md")]


def block(name: str, page: Path) -> str:
    """Return the contents of a block of `page`: links start from the page's folder."""
    if name not in NAMES:
        raise MoaError(f"{page.name}: a block must be one of {', '.join(NAMES)}; found {name}")
    if name in OWN:
        text = OWN[name]()
    elif not (RESULTS / f"{BLOCKS[name][1]}.json").exists():
        file = BLOCKS[name][1]
        text = missing(file, TARGETS.get(file, "bench"))
    else:
        write, file = BLOCKS[name]
        text = f"{write(found := load(file))}\n\n{made(file, found)}"
    up = "../" * len(page.relative_to(ROOT).parents[1:])
    return LINK.sub(f"]({up}", f"{text}\n")


def written(page: Path) -> str:
    """Return the page with every block rewritten."""
    text = page.read_text()
    return BLOCK.sub(lambda m: f"<!-- figures: {m[1]} -->\n{block(m[1], page)}<!-- end -->", text)


def stale() -> Iterator[str]:
    """Return the pages and blocks that differ from their result file."""
    for page in pages():
        for name, found in BLOCK.findall(page.read_text()):
            if found != block(name, page):
                yield f"{page.relative_to(ROOT)}: {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    found = list(stale())
    print(*found, sep="\n", end="\n" if found else "")
    if options.check:
        return int(bool(found))
    for page in pages():
        replace(page, written(page).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
