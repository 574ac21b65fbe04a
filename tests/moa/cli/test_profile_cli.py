"""What `moa profile` says of its last release's options."""

import pytest
from typer.testing import CliRunner

import moa
from moa.cli import main as cli
from moa.cli.profile import MOVED
from moa.plans.errors import MoaError


@pytest.fixture
def profile(monkeypatch):
    """Runs `moa profile`, whose work tells one line and then fails: (told in advance, options) to its output."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(told: bool, *options: str) -> str:
        def measure(*_args, note, **_options):
            if told:
                note("2 samples ahead")
            raise MoaError("stopped")

        monkeypatch.setattr(moa, "profile_model", measure, raising=False)
        return CliRunner().invoke(cli.app, ["profile", "model", "-o", "p.safetensors", *options]).output

    return run


def test_the_new_spelling_is_named_before_the_work(profile):
    said = profile(True, "--sinks", "64")
    assert said.count(MOVED) == 1
    assert said.index(MOVED) < said.index("2 samples ahead")


def test_nothing_is_said_of_it_before_a_refusal_or_without_old_options(profile):
    assert MOVED not in profile(False, "--keydiff", "64")
    assert MOVED not in profile(True, "--variant", "sink_window:64")
