"""Compile a decode step of back-end `triton` with inductor for an H100, where there is none, and print what was made.

The tensors lie on the CPU, and inductor is told that they lie on an H100. So it passes each launch its arguments as it
would there (an integer of 1 is a constant, a number is float64) and has Triton compile it; nothing is launched.

    python tests/kernels/inductor_sm90.py SEQUENCES KV_HEADS first|keydiff|reads
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import torch
import torch.utils._triton
import triton
from torch._dynamo.utils import counters
from torch._inductor.runtime import hints, triton_helpers, triton_heuristics
from triton.backends.compiler import GPUTarget

from moa.kernels.backend import Backend
from moa.kernels.call import Packed, Reading, Visibility
from moa.kernels.dispatch import attend
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate
from moa.kernels.triton import operations as kernels
from moa.kernels.triton import tiles
from moa.kernels.triton.pieces import pieces

HEADS, SIZE = 4, 128
H100 = hints.DeviceProperties(
    type="cuda", index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048, warp_size=32,
)  # fmt: skip
made: list[dict[str, object]] = []


def precompile(self: triton_heuristics.CachingAutotuner, *_: object, **__: object) -> None:
    """Stand in for the method of the same name, which also loads what it compiles."""
    for config in self.configs:
        kernel = self._precompile_config(config).kernel
        ones = sorted(name for name, value in self.triton_meta["constants"].items() if value == 1 and name.islower())
        made.append({"kernel": self.fn.__name__, "target": kernel.metadata.target.arch, "ones": ones})


def main(sequences: int, groups: int, holds: str) -> None:
    torch.utils._triton.has_triton = lambda: True
    torch._inductor.config.compile_threads = 1
    torch._inductor.config.force_disable_caches = True
    triton.runtime.driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 90, 32)))
    tiles.arch = lambda: "sm_90"
    hints.DeviceProperties.create = classmethod(lambda *_: H100)
    triton_helpers.set_driver_to_gpu = lambda: None
    triton_heuristics.CachingAutotuner.precompile = precompile
    triton_heuristics.CachingAutotuner.run = lambda *_, **__: None

    reads = holds == "reads"
    store = allocate(np.full((sequences, groups), 1024), SIZE, torch.bfloat16, "cpu", summaries=reads)
    pieces(store)
    q, k, v = (torch.zeros(sequences, heads, SIZE, dtype=torch.bfloat16) for heads in (HEADS * groups, groups, groups))
    offsets, seen = (
        torch.arange(sequences + 1, dtype=torch.int32),
        Visibility(torch.zeros(groups, 32, dtype=torch.int32), torch.full((groups,), 64, dtype=torch.int32)),
    )
    backend = Backend(
        "triton", kernels.attend, kernels.append, kernels.decode, read=kernels.read,
        follow_keydiff=kernels.follow_keydiff, summarises=True,
    )  # fmt: skip
    sinks = None
    reading = Reading(*(torch.full((groups,), n, dtype=torch.int32) for n in (32, 64))) if reads else None
    if holds == "keydiff":
        sinks = Sinks(np.full(groups, 64), (holds,) * groups, np.zeros_like, sequences, torch.device("cpu"))

    def step(past: torch.Tensor) -> torch.Tensor:
        batch = Packed(offsets, past, 1, nonempty=True)
        return attend(
            q, k, v, batch=batch, seen=seen, store=store, softmax=Softmax(0.1), backend=backend, sinks=sinks,
            grown=lambda: store, reading=reading,
        )  # fmt: skip

    compiled = torch.compile(step, fullgraph=True, dynamic=False)
    for past in (100, 101):
        compiled(torch.full((sequences,), past))
    print(json.dumps({"graphs": counters["stats"]["unique_graphs"], "made": made}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
