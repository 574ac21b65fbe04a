"""What a result says of a plan in words and numbers."""

import re
from typing import Any

import pytest

from moa.outcome import quality_of, verdict


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"perplexity_against_dense": 1.1}, "costs quality"),
        ({"minus_dense": [-0.5, -0.7, -0.2]}, "but needles"),
        ({"dense_right": 0}, "retrieval is not known"),
        ({}, r"costs little: fewer needles than dense are not shown \(-0.20 to \+0.10 of all\)"),
    ],
)
def test_the_verdict(changes: Any, says: str) -> None:
    quality = {"dense_right": 9, "minus_dense": [-0.1, -0.2, 0.1], "perplexity_against_dense": 1.001, **changes}
    gains = {"told": "this plan gains at 256 tokens and above", "from": 256, "longest": 4096}
    lines = verdict({"quality": quality, "gains": gains})
    assert lines[0] == "this plan gains at 256 tokens and above; the model takes texts of up to 4,096 tokens"
    assert re.search(says, lines[1])
    gains |= {"from": None, "longest": None, "told": "nothing"}
    assert verdict({"quality": quality, "gains": gains})[0].startswith("nothing; the budget lets it keep nearly every")


def test_quality_is_the_plans() -> None:
    def row(name: str, one: str, four: str, worse: float) -> dict[str, Any]:
        return {
            "row": name, "single": {"by_question": one}, "four": {"by_question": four},
            "text": {"perplexity_against_dense": worse},
        }  # fmt: skip

    found = quality_of([row("dense", "1", "1110", 1.0), row("plan", "1", "0100", 1.3), row("uniform", "0", "0000", 2.0),
                     row("dense", "1", "1111", 1.0), row("plan", "0", "1111", 1.1)])  # fmt: skip
    assert (found["questions"], found["right"], found["dense_right"]) == (10, 6, 9)
    assert found["minus_dense"][0] == pytest.approx(-0.3)
    assert found["perplexity_against_dense"] == 1.3
    decoded = row("plan", "1", "1111", 1.1) | {"decoded": {"perplexity_against_dense": 1.4}}
    assert quality_of([row("dense", "1", "1111", 1.0), decoded])["perplexity_against_dense"] == 1.4
