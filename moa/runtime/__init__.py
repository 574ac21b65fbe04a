"""The model under a plan: attention, layers, cache, generation."""
