"""Show plans and fronts as tables and pictures."""
