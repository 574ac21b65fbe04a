"""Quality of plans beside the dense model, on the same samples."""
