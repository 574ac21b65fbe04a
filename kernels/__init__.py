"""Attention operations: reference, fast CPU path, Triton. Tensors and rule tables in; no plan files."""
