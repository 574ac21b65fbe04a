"""The operations of back-end `torch`, with the arguments of `moa.kernels.reference`."""

from moa.kernels.torch.decode import step
from moa.kernels.torch.prefill import append, attend

__all__ = ["append", "attend", "step"]
