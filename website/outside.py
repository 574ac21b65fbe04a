"""Give each file outside `docs/` that a page links to a page of the site."""

import ast
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
PYTHON = "---\nsearch: {{exclude: true}}\n---\n\n# {name}\n\n``` python\n{text}\n```\n"
FOLDER = "---\nsearch: {{exclude: true}}\n---\n\n# {name}\n\n| file | what it does |\n|---|---|\n{rows}\n"


def resolved(page: Path, target: str) -> tuple[Path, str] | None:
    """Return the file that a relative link of a page leads to, and the anchor with its `#`; None for other links."""
    place, mark, anchor = target.partition("#")
    if not place or ":" in place:
        return None
    return (page.parent / place).resolve(), mark + anchor


class Outside:
    """The pages of files outside `docs/`: they lie below `files/`, by their paths in the repository.

    Attributes:
        docs: The folder of the documentation.
        root: The repository.
    """

    def __init__(self, docs: Path) -> None:
        self.docs, self.root = docs, docs.parent
        self._sources: dict[str, Path] = {}

    def source(self, uri: str) -> Path | None:
        """Return the Markdown file that a page of the site shows; None if it shows something else."""
        own = self._sources.get(uri, self.docs / uri)
        return own if own.suffix == ".md" and own.is_file() else None

    def uri(self, path: Path) -> str:
        """Return the path within the site of the page, or plain file, for a file or folder of the repository."""
        if path.is_relative_to(self.docs):
            return path.relative_to(self.docs).as_posix()
        name = path.relative_to(self.root).as_posix()
        if name == "README.md":
            return "index.md"
        ending = "/index.md" if path.is_dir() else ".md" if path.suffix == ".py" else ""
        return f"files/{name}{ending}"

    def link(self, page: str, path: Path) -> str:
        """Return the link from a page of the site to a file or folder of the repository."""
        return os.path.relpath(self.uri(path), os.path.dirname(page))

    def reached(self, pages: Iterable[Path]) -> Iterator[tuple[str, str | bytes]]:
        """Yield path and content of everything outside `docs/` among some pages, and behind their links.

        Raises:
            FileNotFoundError: A link leads nowhere.
        """
        ahead, seen = list(pages), set[Path]()
        while ahead:
            path = ahead.pop()
            if path in seen:
                continue
            seen.add(path)
            if path.suffix == ".md":
                links = LINK.findall("".join(FENCE.split(path.read_text())[::2]))
                ahead += [found[0] for _, target in links if (found := resolved(path, target))]
            if not path.is_relative_to(self.docs):
                self._sources[self.uri(path)] = path
                yield self.uri(path), self._content(path)

    def _content(self, path: Path) -> str | bytes:
        name = path.relative_to(self.root).as_posix()
        if path.is_dir():
            rows = [f"| {inside.name} | {_about(inside)} |" for inside in sorted(path.iterdir()) if _shown(inside)]
            return FOLDER.format(name=name, rows="\n".join(rows))
        if path.suffix == ".py":
            return PYTHON.format(name=name, text=path.read_text())
        return path.read_text() if path.suffix == ".md" else path.read_bytes()


def _shown(path: Path) -> bool:
    return not path.name.startswith((".", "__pycache__"))


def _about(path: Path) -> str:
    """Return the first line of a module's or package's docstring."""
    module = path / "__init__.py" if path.is_dir() else path
    if module.suffix != ".py" or not module.is_file():
        return ""
    return (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n")[0].replace("|", "\\|")
