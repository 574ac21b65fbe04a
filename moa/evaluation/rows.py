"""Make the rows of a comparison: the dense model, plans, and beside each plan a uniform window of its size."""

from collections.abc import Sequence
from dataclasses import dataclass

from moa.plans.plan import Plan
from moa.plans.reading import READ_STEPS
from moa.plans.span import BLOCK
from moa.runtime.variant import Variant


@dataclass(frozen=True)
class Row:
    """A line of the table: the dense model, or a plan at a length.

    Attributes:
        name: Its name in the table.
        plan: The plan; None for the dense model.
        backend: Name of the back-end; None for the device's own.
    """

    name: str
    plan: Plan | None
    backend: str | None = None

    @property
    def variant(self) -> Variant:
        """How the model is run."""
        return Variant(self.plan, backend=self.backend)


def rows_at(plans: Sequence[tuple[str, Plan]], length: int, uniform: bool, backend: str | None) -> list[Row]:
    """Return the dense row, then each plan's and, if asked, its least uniform window that keeps as much at `length`.

    Beside a plan that reads less than it keeps, the uniform window reads as much as the plan, all groups alike. One as
    long as the text is then full attention.
    """
    rows = [Row("dense", None)]
    for name, plan in plans:
        rows.append(Row(name, plan, backend))
        if uniform:
            twin = uniform_like(plan, length)
            if plan.reads():
                twin = Plan.dense(plan.model) if twin.density(length) == 1 else twin
                twin = _reading(twin, plan.read_density(length), length)
            rows.append(Row(f"uniform like {name}", twin, backend))
    return rows


def uniform_like(plan: Plan, length: int) -> Plan:
    """Return the least uniform window that keeps as much as a plan does at a length."""
    span = length - BLOCK * int(length * (1 - plan.density(length)) / BLOCK + 1e-9)  # what a window can keep
    return Plan.uniform(plan.model, span / length, at=length)


def _reading(plan: Plan, share: float, length: int) -> Plan:
    """Return the uniform plan with the least `read` that reads at least `share` of the bytes; all it keeps if none."""
    made = (Plan.from_rules(plan.model, {}, defaults=plan.defaults.reading(k)) for k in range(1, READ_STEPS + 1))
    return next((found for found in made if found.read_density(length) >= share - 1e-9), plan)
