"""Lets the tests import the benchmarks, and lends them what tests/moa makes."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def lent(folder, fixture):
    """A fixture of another folder's conftest.py; test folders are no packages."""
    spec = spec_from_file_location(f"conftest_{folder}", Path(__file__).parents[1] / folder / "conftest.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, fixture)


fresh = lent("moa", "fresh")
save_tiny = lent("moa", "save_tiny")


@pytest.fixture
def interrupt(monkeypatch):
    """A function that runs a script of single groups' harm until `when` holds of what it is to measure next."""

    def run(script, when):
        measured = script.Bench.harm

        def stop(bench, *what):
            if when(*what):
                raise KeyboardInterrupt
            return measured(bench, *what)

        with monkeypatch.context() as patch:
            patch.setattr(script.Bench, "harm", stop)
            with pytest.raises(KeyboardInterrupt):
                script.main()

    return run
