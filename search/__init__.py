"""Search: from a profile and budgets to a plan, by an exact integer program."""
