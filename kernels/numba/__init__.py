"""Back-end `numba`, for CPUs: prefill as in back-end `torch`, decode and reads as compiled calls."""

from moa.kernels.spec import Spec

SPEC = Spec(
    "numba",
    module="moa.kernels.numba.operations",
    can=("prefill", "decode", "read", "latent", "graph"),
    devices=("cpu",),
    title="CPU",
    packages=("numba",),
    hint="pip install 'moa-attention[cpu]'",
    optional=True,
)
