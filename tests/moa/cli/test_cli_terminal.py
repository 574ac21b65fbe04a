"""Terminals, and pipes, whose encoding lacks the characters of our tables and maps."""

import io
import subprocess
import sys

import pytest

from moa.cli import main as cli

PLAN = "smollm2-135m-instruct-0.25"
COMMANDS = [["show", PLAN], ["show", PLAN, "smollm2-135m-instruct-0.5"], ["doctor"], ["--help"], ["search", "--help"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_any_encoding_will_do(monkeypatch, command, encoding):
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["moa", *command])
    monkeypatch.setenv("COLUMNS", "140")
    assert cli.main() == 0
    sys.stdout.flush()
    text = out.getvalue().decode(encoding)
    assert "\\u" not in text
    if command[0] == "show":
        assert {*".:*%#"} <= {*text} or encoding != "ascii"
        assert "%% " in text or "##" in text  # the map's shades stay apart
        assert "# all" in text


def test_what_nothing_stands_for_is_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["moa", "--version"])
    assert cli.main() == 0
    print("half of 漢字 → █")
    sys.stdout.flush()
    assert out.getvalue().decode().splitlines()[1] == "half of \\u6f22\\u5b57 > #"


def test_utf8_stays(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out := io.BytesIO(), encoding="utf-8"))
    monkeypatch.setattr(sys, "argv", ["moa", "show", PLAN])
    assert cli.main() == 0
    sys.stdout.flush()
    assert "█ all" in out.getvalue().decode()


def test_an_ascii_process():
    done = subprocess.run(
        [sys.executable, "-m", "moa", "show", PLAN], env={"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"# all" in done.stdout
