"""The site of the documentation: it builds without a warning, and its references are those of the code."""

import importlib
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from typer.main import get_command

from moa.cli.main import COMMANDS, app
from moa.plans.record import Predicted

ROOT = Path(__file__).parents[2]
reference, outside = importlib.import_module("reference"), importlib.import_module("outside")
QUIET = os.environ | {"NO_MKDOCS_2_WARNING": "1"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="mkdocs-material is not installed: make docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")
    return folder


def test_every_page_is_there(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    names = {Path("index.html"), Path("reference/commands.html"), Path("reference/plan.html")}
    names |= {Path("experiments/index.html"), Path("files/plans/span.py.html"), Path("files/plans/library/index.html")}
    assert [path for path in sorted(pages | names) if path.name != "README.html" and not (site / path).is_file()] == []


def test_pages_need_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"', page.read_text())
        assert [where for both in loaded for where in both if "//" in where] == [], page


def test_links_of_generated_pages_lead_somewhere(site):
    """Of pages of the repository mkdocs checks the links; this checks what stands in the pages of the site."""
    for page in [site / "index.html", *(site / "reference").glob("*.html"), *(site / "files").rglob("index.html")]:
        for link in re.findall(r'<a [^>]*href="([^"#:]+)(?:#[^"]*)?"', page.read_text()):
            assert (page.parent / unescape(link)).exists(), (page, link)


def test_each_command_and_option_is_in_the_reference():
    page = reference.commands()
    command = get_command(app)
    for name in COMMANDS:
        part = re.search(rf"^## `moa {name}`\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]
        for parameter in command.commands[name].params:
            argument = parameter.param_type_name == "argument"
            named = [parameter.metavar or parameter.name] if argument else parameter.opts
            found = all(re.search(rf"[`, ]{re.escape(each)}[`, ]", part) for each in named)
            assert found != getattr(parameter, "hidden", False), (name, parameter.name)


def test_each_key_of_a_plan_is_in_the_reference_with_its_meaning():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \| (.*?) \|$", reference.plan_file(), re.M)
    assert {"version", "defaults", "alpha", "beta", "kv_heads", "window", *Predicted.model_fields} <= {
        r[0] for r in rows
    }
    assert [row for row in rows if not row[1] or not row[3]] == []


def test_links_out_of_docs_lead_to_pages_of_files(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "kernels").mkdir()
    for name, text in {
        "README.md": "[a](docs/a.md)",
        "docs/a.md": "[up](../README.md) [code](../kernels/one.py)\n```md\n[no](../nothing.md)\n```\n[dir](../kernels)",
        "kernels/one.py": '"""Do one thing | well."""\n',
        "kernels/.hidden": "",
    }.items():
        (tmp_path / name).write_text(text)
    found = outside.Outside(tmp_path / "docs")
    files = dict(found.reached([tmp_path / "docs" / "a.md"]))
    assert sorted(files) == ["files/kernels/index.md", "files/kernels/one.py.md", "index.md"]
    assert "Do one thing | well." in files["files/kernels/one.py.md"]
    assert "| one.py | Do one thing \\| well. |\n" in files["files/kernels/index.md"]
    assert "hidden" not in files["files/kernels/index.md"]
    assert found.link("files/kernels/index.md", tmp_path / "docs" / "a.md") == "../../a.md"
    assert found.source("files/kernels/one.py.md") is None
    assert found.source("index.md") == tmp_path / "README.md"


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("[gone](../gone.py)")
    with pytest.raises(FileNotFoundError, match=r"gone\.py"):
        list(outside.Outside(tmp_path / "docs").reached([tmp_path / "docs" / "a.md"]))


def test_pictures_are_what_the_code_draws():
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    pictures = importlib.import_module("pictures")
    stale = [
        name for name in pictures.PICTURES if (pictures.FOLDER / f"{name}.svg").read_bytes() != pictures.drawn(name)
    ]
    assert stale == [], "run: python benchmarks/pictures.py"
    assert {path.stem for path in pictures.FOLDER.iterdir()} == set(pictures.PICTURES)
