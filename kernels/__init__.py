"""Compute attention under rules given as tables: a reference, and back-ends for CPUs and GPUs. No plan is read."""
