"""The contract of all patterns, inherited by each that there is, and that each has its class here."""

from typing import ClassVar

import pytest
from contract import Contract, kinds

from moa.plans.patterns import PATTERNS, KeyDiffWindow, Rule, SinkWindow


class TestSinkWindow(Contract):
    kind = SinkWindow
    rules: ClassVar[tuple[Rule, ...]] = (
        SinkWindow(alpha=128, beta=0), SinkWindow(alpha=0, beta=0.5), SinkWindow(sink=128, alpha=-100, beta=0.75),
    )  # fmt: skip


class TestKeyDiffWindow(Contract):
    kind = KeyDiffWindow
    rules: ClassVar[tuple[Rule, ...]] = (
        KeyDiffWindow(alpha=128, beta=0), KeyDiffWindow(alpha=0, beta=0.5), KeyDiffWindow(sink=128, alpha=200, beta=0),
    )  # fmt: skip


@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_keeps_to_the_contract(name: str) -> None:
    assert PATTERNS[name] in kinds()
