"""Search for a plan, from a profile and budgets, by an exact integer program."""
