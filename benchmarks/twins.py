"""Make plans that differ from a plan in one thing."""

from moa.plans.patterns import Rule
from moa.plans.plan import Plan


def first_keys(plan: Plan) -> Plan:
    """Return the plan with the same numbers whose sinks hold the first keys."""
    rules = {
        layer: [Rule(**rule.model_dump() | {"pattern": "sink_window"}) for rule in rules]
        for layer, rules in plan.groups.items()
    }
    return Plan.from_rules(plan.model, rules)
