"""Build the site: the README is its first page, references are generated, and links leave `docs/` as on GitHub."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from outside import FENCE, LINK, Outside, resolved
from pymdownx.slugs import slugify
from reference import commands, plan_file

GENERATED = {"reference/commands.md": commands, "reference/plan.md": plan_file}
COMMENT = re.compile(r"^(<!--.*-->)\n(?=\S)", re.MULTILINE)


def on_config(config: Any) -> Any:
    """Give titles the anchors that GitHub gives them."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the README, the generated pages, and each file outside `docs/` that some page links to."""
    docs = Path(config.docs_dir)
    outside = Outside(docs)
    for uri, write in GENERATED.items():
        files.append(File.generated(config, uri, content=write()))
    pages = [docs / file.src_uri for file in files.documentation_pages() if file.src_uri not in GENERATED]
    for uri, content in outside.reached([*pages, docs.parent / "README.md"]):
        files.append(File.generated(config, uri, content=content))
    config.extra["outside"] = outside
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point links at the pages of the site, and part comments from the paragraphs that they belong to."""
    outside: Outside = config.extra["outside"]
    source = outside.source(page.file.src_uri)
    if source is None:
        return markdown

    def pointed(link: re.Match[str]) -> str:
        found = resolved(source, link[2])
        if found is None:
            return link[0]
        path, anchor = found
        return f"{link[1]}({outside.link(page.file.src_uri, path)}{anchor})"

    parts = FENCE.split(markdown)  # text and fenced blocks in turn
    text = [part if i % 2 else COMMENT.sub(r"\1\n\n", LINK.sub(pointed, part)) for i, part in enumerate(parts)]
    return "".join(text)
