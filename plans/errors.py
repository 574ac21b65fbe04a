"""The exceptions of the whole package: one family, so that one `except` and one exit code serve all."""


class MoaError(ValueError):
    """Bad input, said in one line: the rule, the value found, the valid choices."""


class PlanError(MoaError):
    """A plan file or a rule that breaks the schema."""


class ProfileError(MoaError):
    """A profile that is damaged, incomplete, or made by something else."""


class ModelMismatch(MoaError):
    """A plan, profile or cost table made for another model."""


class BudgetInfeasible(MoaError):
    """No plan fits the budget; the message names the smallest feasible value."""


class Unsupported(MoaError):
    """Something the runtime cannot honour, refused by name rather than computed wrongly."""
