"""Run a model under a plan: attention, cache layers, the cache, and generation."""
