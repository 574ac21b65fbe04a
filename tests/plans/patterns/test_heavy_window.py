"""A pattern whose sinks hold keys of another choice: by one name, profiles and runs have the same keys."""

from typing import Any, ClassVar

import pytest
import torch
from contract import Contract
from heavy_window import HeavyWindow, norms

from moa.kernels.sink_contents import SCORES
from moa.plans.errors import MoaError
from moa.plans.patterns import PATTERNS, KeyDiffWindow, Rule, SinkWindow, register, rule
from moa.plans.plan import Plan
from moa.plans.span import HOLDS


class TestHeavyWindow(Contract):
    kind = HeavyWindow
    rules: ClassVar[tuple[Rule, ...]] = (
        HeavyWindow(alpha=128, beta=0), HeavyWindow(alpha=0, beta=0.5), HeavyWindow(sink=128, alpha=200, beta=0),
    )  # fmt: skip

    @pytest.fixture(autouse=True)
    def chosen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its choice of keys is known to its tests alone."""
        monkeypatch.setitem(SCORES, "heavy", norms)

    def test_a_layer_may_mix_choices(self, model: Any) -> None:
        numbers = {"alpha": 128, "beta": 0}
        heavy, unlike, first = (kind(**numbers) for kind in (HeavyWindow, KeyDiffWindow, SinkWindow))
        each = [self.masked(model, Plan.from_rules(model, {}, defaults=kind)) for kind in (heavy, unlike, first)]
        assert min((a - b).abs().max() for a, b in zip(each, each[1:] + each[:1], strict=True)) > 0.01
        self.runs_as_masked(model, Plan.from_rules(model, {0: [heavy, unlike], 1: [first, heavy]}))


def test_every_name_has_its_choice_of_keys() -> None:
    assert tuple(SCORES) == HOLDS
    assert torch.equal(norms(torch.full((1, 64, 2), 3.0)), torch.full((1, 64), 18.0))


def test_a_name_without_a_choice_of_keys_is_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MoaError, match=r"^HeavyWindow\.holds must be 'first', 'keydiff', found 'heavy'$"):
        register(HeavyWindow)
    assert "heavy_window" not in PATTERNS
    monkeypatch.setattr(rule, "HOLDS", (*HOLDS, "heavy"))
    monkeypatch.setattr(rule, "PATTERNS", {})
    assert register(HeavyWindow) is HeavyWindow
