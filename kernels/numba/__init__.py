"""Back-end `numba`, for CPUs: prefill as in back-end `torch`, decode as one compiled call that reads the slabs once."""

from moa.kernels.spec import Spec

SPEC = Spec(
    "numba",
    module="moa.kernels.numba.operations",
    can=("prefill", "decode", "graph"),
    devices=("cpu",),
    title="CPU",
    packages=("numba",),
    hint="pip install 'moa-attention[cpu]'",
    optional=True,
)
