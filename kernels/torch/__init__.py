"""Back-end `torch`: library attention in an order that follows the plan. Fast on CPU, runs anywhere."""

from moa.kernels.spec import Spec

SPEC = Spec("torch", module="moa.kernels.torch.operations", can=("prefill", "decode", "read", "latent", "graph"))
