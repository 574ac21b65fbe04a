"""Plans: the rules of which keys each query sees, the plan file, and shipped plans. Nothing here imports torch."""
