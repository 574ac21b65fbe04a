"""Compile one kernel without a device, and read what it needs from the compiler's report."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moa.kernels.triton.changing_sinks import UNSPECIALISED as SINKS_UNSPECIALISED
from moa.kernels.triton.common import RUN_TIME
from moa.kernels.triton.gradient_q import UNSPECIALISED
from moa.kernels.triton.tiles import Tiles

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}  # fmt: skip
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory that a block may use: NVIDIA's tuning guides, AMD's CDNA3 ISA guide."""
TENSOR_CORES = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma")
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
INTS32 = {
    "table", "places", "exits", "groups_of", "first", "sink", "sinks", "sink_keys", "sizes", "capacity", "cu_seqlens",
    "items", "folded", "left", "share", "given", "listed", "chosen", "lengths",
}  # fmt: skip
INTS8 = {"can_undo"}
BYTES = {"summaries"}
INTS64 = {"base", "pasts", "position", "position_kept", "pools", "tables", "slots"}
FLOATS = {"lse", "parts", "delta", "cuts", "sink_logits", "found", "score", "score_kept", "scores", "tops",
          "totals"}  # fmt: skip
SCALARS = {"scale", "cap"}
OPTIONAL = {"cap", "sink_logits"}
"""Arguments that are None without a soft-cap and learned sinks."""
CHANGING = {"table", "places", "folded", "moving", "most", "lines"}
"""Arguments of prefill that are None where all sinks hold the first keys."""
SPILLS = {
    ("influence q", "bf16"): (256, "Q and dO of 16 rows are operands of every warp: 128 registers, dQ beside them"),
    ("influence q", "fp32"): (128, "Q and dO of 16 rows, each twice for three TF32 passes: 256 registers"),
    ("influence kv", "fp32"): (256, "K, V, dK and dV of 32 keys: 128 registers of 255, and their products' operands"),
    ("influence sinks", "fp32"): (256, "Q and dO of 16 rows, each twice for three TF32 passes: 512 registers"),
    ("prefill", "bf16"): (256, "with changing sinks each key of a tile has an address of its own, 40 bytes on sm_90"),
    ("decode", "bf16"): (512, "K and V of 64 keys from two sources, 20 bytes on gfx942"),
    ("prefill", "fp32"): (256, "Q of 16 rows, twice for three TF32 passes: 256 registers"),
    ("decode", "fp32"): (256, "Q of 16 rows, twice for three TF32 passes: 256 registers"),
    ("read", "fp32"): (256, "as decode"),
    ("pooled prefill", "fp32"): (256, "as prefill"),
    ("page scores", "fp32"): (256, "numbers of 64 quads, twice for three TF32 passes, up to 24 bytes on sm_80"),
}
"""Kernels by type that may spill from a head size on, and why: what a thread of 255 registers would have to hold."""

CONTRACTED = 2
"""Contracted products of `page_choice_kernel`: both are of sums that are formed once."""


@dataclass
class Row:
    """What one compilation needed."""

    kernel: str
    target: str
    dtype: str
    head_size: int
    variant: str
    rows: int
    warps: int
    stages: int
    registers: int
    shared: int
    spills: int
    tensor_cores: str
    contracted: int
    """Products that the compiler made one operation with the sum that takes them; not counted on AMD."""

    def faults(self) -> list[str]:
        """Return what makes this configuration unfit to ship."""
        names = ("prefill", "decode", "read", "page scores", "pooled prefill", "pooled decode")
        attends = self.kernel in names or self.kernel.startswith("influence")
        found = []
        if self.spills and self.head_size < SPILLS.get((self.kernel, self.dtype), (1 << 30, ""))[0]:
            found.append(f"spills {self.spills} bytes")
        if self.shared > SHARED[self.target]:
            found.append(f"needs {self.shared} bytes of shared memory, the target has {SHARED[self.target]}")
        if attends and self.dtype != "fp32" and not self.tensor_cores:
            found.append("uses no tensor cores")
        if self.kernel == "page choice" and self.contracted > CONTRACTED:
            found.append(f"{self.contracted} products are contracted, so that its passes may form other weights")
        return found


def build(kernel: Any, name: str, target: str, dtype: torch.dtype, dim: int, variant: str, tiles: Tiles,
          constants: dict[str, Any], pointers: dict[str, str] | None = None, plain: bool = True,
          ones: bool = False) -> Row:  # fmt: skip
    """Compile one kernel as its launcher would for aligned tensors; with `ones`, as inductor does where sizes are 1."""
    signature, attributes = {}, {}
    if ones:
        variant += ", sizes of 1"
        constants = constants | dict.fromkeys(set(RUN_TIME).intersection(kernel.arg_names) - {"begin"}, 1)
    if plain:
        constants = constants | dict.fromkeys(OPTIONAL.intersection(kernel.arg_names))
    else:
        variant += ", cap and sinks"
    for i, arg in enumerate(kernel.arg_names):
        if arg in constants:
            signature[arg] = "constexpr"
            continue
        signature[arg] = (pointers or {}).get(arg) or _type(arg, DTYPES[dtype])
        if arg not in {*UNSPECIALISED, *SINKS_UNSPECIALISED, *SCALARS}:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    made = triton.compile(source, target=TARGETS[target], options=options)
    text = made.asm["ptx" if "ptx" in made.asm else "amdgcn"]
    registers, spills = _amd(text) if target.startswith("gfx") else _nvidia(made.asm["cubin"])
    cores = "+".join(sorted(set(TENSOR_CORES.findall(text))))
    return Row(
        name, target, DTYPES[dtype], dim, variant, tiles.block_m, tiles.warps, tiles.stages, registers,
        made.metadata.shared, spills, cores, 0 if target.startswith("gfx") else _contracted(text),
    )  # fmt: skip


def _type(arg: str, dtype: str) -> str:
    if arg in INTS32:
        return "*i32"
    if arg in INTS8:
        return "*i8"
    if arg in BYTES:
        return "*u8"
    if arg in INTS64:
        return "*i64"
    if arg in FLOATS:
        return "*fp32"
    if arg in SCALARS:
        return "fp32"
    pointers = {"q", "k", "v", "out", "k_store", "v_store", "k_kept", "v_kept", "dout", "dq", "dk", "dv"}
    return f"*{dtype}" if arg in pointers else "i32"


def _contracted(text: str) -> int:
    """Return the fused multiply-adds of PTX that add anything but 0."""
    zeros = {"0f00000000", *re.findall(r"mov\.[bf]32\s+(%\w+), 0f00000000;", text)}
    return sum(added not in zeros for added in re.findall(r"fma\.rn\.f32\s.*, (%?\w+);", text))


def _nvidia(cubin: bytes) -> tuple[int, int]:
    """Return the registers per thread, and the bytes of stack, which is where spills live."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        report = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return int(_find(r"REG:(\d+)", report)), int(_find(r"STACK:(\d+)", report))


def _amd(text: str) -> tuple[int, int]:
    """Return the vector registers per lane, and the bytes of scratch; scalar registers spill into vector ones."""
    return int(_find(r"\.vgpr_count:\s*(\d+)", text)), int(_find(r"\.private_segment_fixed_size:\s*(\d+)", text))


def _find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, f"no {pattern} in the compiler's report"
    return match.group(1)
