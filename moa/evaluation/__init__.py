"""Measure the quality of plans beside the dense model, on the same samples."""
