"""Provide the operations of back-end `torch`, which `moa.kernels.call` documents."""

from moa.kernels.torch.decode import decode
from moa.kernels.torch.prefill import append, attend
from moa.kernels.torch.read import read

__all__ = ["append", "attend", "decode", "read"]
