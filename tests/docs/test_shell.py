"""Every shell line and YAML block of the documentation: what it names exists, and the commands' own parsers take it."""

import re
import tomllib
from collections.abc import Sequence

import pytest
import yaml
from blocks import FENCE, PAGES, ROOT, blocks, lines, name_of
from typer.main import get_command

from moa.cli.main import app
from moa.plans.plan import Plan

OTHERS = {".venv-vllm/bin/python": "vLLM has an environment of its own, and serving/vllm/tests"}
"""Programs whose lines nothing here can parse, and why."""
PLAIN = {"mkdir", "echo", "export"}
"""Of the shell itself."""
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
SHELL = [(name_of(page), line) for page in PAGES for line in lines(page)]


def parsed(words: Sequence[str]) -> dict[str, object]:
    """Return what the command's own parser makes of the words after `moa`."""
    name, *arguments = words
    return get_command(app).commands[name].make_context(name, list(arguments)).params


def script(path: str, options: Sequence[str]) -> None:
    """A script of ours exists, and names the options that it is given."""
    text = (ROOT / path).read_text()
    parts = (ROOT / path).with_name(f"{(ROOT / path).stem}_parts")
    text += "".join(part.read_text() for part in parts.glob("*.py"))
    assert [word for word in options if word.startswith("--") and f'"{word}"' not in text] == []


def check(words: list[str]) -> None:
    """Fail unless the line could run; a line of an unknown program is an error."""
    while "=" in words[0]:
        words = words[1:]
    program, *rest = words
    if program == "torchrun":
        assert rest[2:4] == ["-m", "moa"]
        program, rest = "moa", rest[4:]
    if program == "moa":
        parsed(rest)
    elif program == "make":
        assert {word for word in rest if "=" not in word} <= TARGETS
    elif program == "pip":
        assert rest[0] == "install"
        assert all(set(found.split(",")) <= EXTRAS for found in re.findall(r"\[(.+?)\]", " ".join(rest)))
        assert all((ROOT / word).is_dir() for word in rest if word.startswith("./"))
    elif program == "python" and rest[:2] == ["-m", "pytest"]:
        assert (ROOT / rest[2]).exists()
    elif program == "python":
        script(rest[0], rest[1:])
    else:
        assert program in PLAIN | OTHERS.keys(), f"a test must say how it knows that {program} works"


@pytest.mark.parametrize(("page", "words"), SHELL, ids=[f"{page}-{i}" for i, (page, _) in enumerate(SHELL)])
def test_shell_line(page, words):
    check(words)


@pytest.mark.parametrize(
    "line",
    [
        "moa prophecy MODEL -o x", "moa search profile.safetensors -o plan.yaml --max-densty 0.5", "moa profile -o x",
        "moa bench MODEL --repeats three", "make nothing", "python benchmarks/none.py", "pip install '.[cpus]'",
        "python benchmarks/gpu.py --parts decode", "curl https://host",
    ],
)  # fmt: skip
def test_a_line_that_cannot_run_is_found(line):
    import shlex

    with pytest.raises(Exception, match=r"."):
        check(shlex.split(line))


def test_every_block_is_checked():
    """Of these languages, by tests here and in test_python.py."""
    found = {language for page in PAGES for language, _ in FENCE.findall(page.read_text())}
    assert found <= {"sh", "python", "yaml"}
    assert OTHERS.keys() <= {words[0] for _, words in SHELL}


def test_yaml_blocks_are_plans_or_options(tmp_path):
    found = [(page, block) for page in PAGES for block in blocks(page, "yaml")]
    assert len(found) >= 2
    for _, block in found:
        path = tmp_path / "block.yaml"
        path.write_text(block)
        if "version" in yaml.safe_load(block):
            assert Plan.load(path).model.layers
        else:  # the defaults of `moa compress`, but for what the command line says
            assert (
                str(parsed(["compress", "MODEL", "--config", str(path)])["output"]) == yaml.safe_load(block)["output"]
            )
