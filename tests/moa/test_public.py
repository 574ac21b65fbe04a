"""The public functions and the commands that call them say the same by default."""

from importlib import import_module
from inspect import signature

import pytest

import moa
from moa.search.question import Question

SAME = {
    "search": (Question.of, ()),
    "refine": (moa.refine_plan, ()),
}


@pytest.mark.parametrize("command", SAME)
def test_defaults_of_a_command_are_those_of_its_function(command: str) -> None:
    function, other = SAME[command]
    ours = signature(function).parameters
    theirs = signature(import_module(f"moa.cli.{command}").command).parameters
    shared = [
        name for name in theirs.keys() & ours.keys() if name not in other and ours[name].default is not ours[name].empty
    ]
    assert shared
    assert {name: theirs[name].default for name in shared} == {name: ours[name].default for name in shared}


def test_functions_have_types_and_documents() -> None:
    for name in moa.__all__:
        found = getattr(moa, name)
        assert found.__doc__, name
        if not isinstance(found, type):
            assert signature(found).return_annotation is not signature(found).empty, name
