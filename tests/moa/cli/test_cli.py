import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import moa
from moa.cli import main as cli
from moa.plans.errors import MoaError


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["moa", *args])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code = cli.main()
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["doctor", "--help"]])
def test_help(monkeypatch, capsys, args):
    code, out, err = run(monkeypatch, capsys, *args)
    assert (code, err) == (0, "")
    assert "Usage" in out


def test_help_has_all_that_options_say(monkeypatch, capsys):
    """Rich takes [brackets] for markup unless told otherwise."""
    monkeypatch.setenv("COLUMNS", "200")
    commands = get_command(cli.app).commands
    assert any("[x" in option.help for option in commands["search"].params if option.help)
    for name, command in commands.items():
        _, out, _ = run(monkeypatch, capsys, name, "--help")
        for option in command.params:
            said = " ".join((option.help or "").replace("`", "").replace("*", "").split())
            assert said in " ".join(out.replace("│", " ").split()), f"{name} {option.name}"


def test_version(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, f"moa {moa.__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["doctr"], "doctr"),
        (["doctor", "--colour"], "--colour"),
        (["doctor", "a", "b", "c"], "c"),
        (["doctor", "/no/such/model"], "/no/such/model"),
        (["doctor", "/no/such/model.gguf"], "/no/such/model.gguf"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, args, says):
    code, _, err = run(monkeypatch, capsys, *args)
    assert code == 2
    assert err.startswith("error: ")
    assert says in err
    assert err.count("\n") == 1


def test_unknown_plan(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,'
        ' "hidden_size": 64, "architectures": ["LlamaForCausalLM"]}'
    )
    code, out, _ = run(monkeypatch, capsys, "doctor", str(tmp_path))
    assert code == 0
    assert "LlamaForCausalLM: 2 layers" in out
    code, _, err = run(monkeypatch, capsys, "doctor", str(tmp_path), "no-such-plan")
    assert code == 2
    assert "no-such-plan" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "says"),
    [
        (MoaError("alpha must be\n an integer"), 2, "error: alpha must be an integer\n"),
        (OSError(36, "File name too long", "x" * 5000), 2, f"error: {'x' * 300}... File name too long\n"),
        (PermissionError(13, "Permission denied", "/out.yaml"), 2, "error: /out.yaml: Permission denied\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, says):
    def fail(**_: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch, capsys) == (code, "", says)


def test_bugs_show_their_traceback(monkeypatch):
    monkeypatch.setattr(cli, "app", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main()


SHOW = [sys.executable, "-m", "moa", "show", "smollm2-135m-instruct-0.5"]


def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(SHOW, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


def test_a_reader_that_goes_away_is_no_fault():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(SHOW, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("command", [["-m", "moa"], [str(Path(sys.executable).with_name("moa"))]])
def test_both_ways_to_start_it(command):
    args = [sys.executable, *command] if command[0] == "-m" else command
    done = subprocess.run([*args, "doctr"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
