"""Back-end `triton`: kernels for GPUs, or for any machine under TRITON_INTERPRET=1."""

from moa.kernels.spec import Spec

SPEC = Spec(
    "triton",
    module="moa.kernels.triton.operations",
    can=("prefill", "decode", "read", "influence", "graph", "read-graph"),
    devices=("cuda",),
    title="GPU",
    packages=("triton",),
    hint="pip install 'moa-attention[gpu]'",
    emulation="TRITON_INTERPRET",
)
