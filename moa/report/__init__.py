"""Plans and fronts as tables and pictures."""
