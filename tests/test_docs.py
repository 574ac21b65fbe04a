"""The documentation against the tree: links resolve, commands exist, Python examples compile."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

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


def options(command: str) -> set[str]:
    from typer.main import get_command

    from moa.cli.main import app

    found = get_command(app).commands[command]
    return {option for parameter in found.params for option in parameter.opts} | {"--help", "-h"}


@pages
def test_shell_commands_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[:1] == ["make"]:
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        elif words[:1] == ["moa"] and len(words) > 1 and not words[1].startswith("-"):
            ours = words[2 : words.index("--")] if "--" in words else words[2:]  # the others are another program's
            used = {word.partition("=")[0] for word in ours if re.match(r"--?[a-z]", word)}
            assert used <= options(words[1]), words
        elif words[:1] == ["python"] and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words


@pages
def test_python_examples_compile_and_import_what_exists(page):
    from importlib import import_module

    for language, body in FENCE.findall(page.read_text()):
        if language == "python":
            compile(body, str(page), "exec")
            for module, names in re.findall(r"^from (moa[\w.]*) import (.+)$", body, re.MULTILINE):
                assert all(hasattr(import_module(module), name.strip()) for name in names.split(",")), body


@pages
def test_guides_are_short(page):
    docs = ROOT / "docs"
    most = {ROOT / "README.md": 150, docs / "models.md": 300, docs / "architecture.md": 120}.get(page, 250)
    assert len(page.read_text().splitlines()) <= most, "move what is not needed at once to a page of its own"


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
