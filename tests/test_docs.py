"""The documentation against the tree: links resolve, pages are short. tests/docs runs or checks its blocks of code."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FIGURES = re.compile(r"^<!-- figures: .*?^<!-- end -->\n", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text())
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pages
def test_links_resolve(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith(("https://", "mailto:")):
            continue
        place, _, anchor = target.partition("#")
        other = (page.parent / place).resolve() if place else page
        assert other.exists(), f"{page.name}: {target}"
        assert other.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            assert anchor in anchors(other), f"{page.name}: {target}"


def commands(page: Path) -> list[list[str]]:
    """Argument lists of the shell lines in a page's fenced blocks."""
    blocks = [body for language, body in FENCE.findall(page.read_text()) if language in ("sh", "bash")]
    joined = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in joined if line.strip()]


@pages
def test_guides_are_short(page):
    docs, text = ROOT / "docs", page.read_text()
    if page in (ROOT / "README.md", docs / "results.md"):  # what was measured is as long as its tables
        text = FIGURES.sub("", text)
    most = {ROOT / "README.md": 110, docs / "models.md": 300, docs / "architecture.md": 120}.get(page, 250)
    assert len(text.splitlines()) <= most, "move what is not needed at once to a page of its own"


def test_readme_names_the_two_first_commands():
    assert {("make", "demo"), ("make", "test")} <= {tuple(words) for words in commands(ROOT / "README.md")}


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"`([\w/]+/[\w/]*(?:\.\w+)?)`", text)) - {"build/mypy/moa"}
    files = {path for path in named if not re.search(r"\bNAME\b|_NAME\b", path)}
    assert len(files) > 12
    assert [path for path in sorted(files) if not (ROOT / path).exists()] == []
    folders = {path.rpartition("/")[0] for path in named - files} - {"kernels/NAME"}
    assert [path for path in sorted(folders) if not (ROOT / path).is_dir()] == []
    for link in re.findall(r"\[([\w/]+/[\w./]+)\]\(([^)\s]+)\)", text):  # a link that reads as a path leads there
        assert link[1].startswith(link[0])


def test_each_guide_has_its_place_in_the_site():
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= named, "name it in mkdocs.yml"
