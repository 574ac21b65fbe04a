"""A pattern added by its own two files alone keeps to the contract."""

from typing import ClassVar

from contract import Contract
from square_window import SquareWindow

from moa.plans.patterns import Rule


class TestSquareWindow(Contract):
    kind = SquareWindow
    rules: ClassVar[tuple[Rule, ...]] = (SquareWindow(root=3), SquareWindow(root=9, floor=30), SquareWindow(root=6))
