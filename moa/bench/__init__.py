"""Measure time and memory on this machine."""
