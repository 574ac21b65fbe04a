"""Search: rule grid, harm from a profile, budgets, exact solver, study."""
