"""Plans: the rule of who sees what, the plan file, and shipped plans. No torch."""
