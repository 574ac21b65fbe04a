"""Compile every Triton kernel without a device, and report registers, shared memory, spills, tensor-core use.

    python benchmarks/triton_aot.py                 the whole matrix into benchmarks/results/triton-aot.{json,md}
    python benchmarks/triton_aot.py --quick         the 24 that the tests check, printed unless --out names a folder

The exit code is 1 if a configuration spills, exceeds the shared memory, or lacks a tensor-core instruction where it
should.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from provenance import provenance
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moa.kernels.triton.append import append_kernel
from moa.kernels.triton.changing_sinks import UNSPECIALISED as SINKS_UNSPECIALISED
from moa.kernels.triton.changing_sinks import changing_sinks_kernel
from moa.kernels.triton.decode import decode_kernel, join_kernel
from moa.kernels.triton.gradient_kv import gradient_kv_kernel
from moa.kernels.triton.gradient_q import UNSPECIALISED, gradient_q_kernel
from moa.kernels.triton.prefill import prefill_kernel
from moa.kernels.triton.tiles import Tiles, decode_tiles, gradient_kv_tiles, gradient_q_tiles, prefill_tiles
from moa.plans.replace import replace, replace_json

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}  # fmt: skip
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory that a block may use: NVIDIA's tuning guides, AMD's CDNA3 ISA guide."""
TENSOR_CORES = re.compile(r"wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma")
DTYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
INTS32 = {"first", "sink", "sinks", "sink_keys", "sizes", "capacity", "cu_seqlens", "items"}
INTS64 = {"base", "pasts"}
FLOATS = {"lse", "parts", "delta", "cuts", "sink_logits"}
SCALARS = {"scale", "cap"}
OPTIONAL = {"cap", "sink_logits"}
"""Arguments that are None without a soft-cap and learned sinks."""


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

    def faults(self) -> list[str]:
        """Return what makes this configuration unfit to ship."""
        needs_mma = self.kernel not in ("append", "join") and self.dtype != "fp32"
        found = []
        if self.spills:
            found.append(f"spills {self.spills} bytes")
        if self.shared > SHARED[self.target]:
            found.append(f"needs {self.shared} bytes of shared memory, the target has {SHARED[self.target]}")
        if needs_mma and not self.tensor_cores:
            found.append("uses no tensor cores")
        return found


def build(kernel: Any, name: str, target: str, dtype: torch.dtype, dim: int, variant: str, tiles: Tiles,
          constants: dict[str, Any], pointers: dict[str, str] | None = None, plain: bool = True) -> Row:  # fmt: skip
    """Compile one kernel as its launcher would for aligned tensors."""
    signature, attributes = {}, {}
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
        made.metadata.shared, spills, cores,
    )  # fmt: skip


def prefill(target: str, dtype: torch.dtype, dim: int, *, store: bool, heads: int = 4, plain: bool = True) -> Row:
    t = prefill_tiles(dim, dtype, target)
    constants = {
        "HEADS": heads, "GROUPS": 8, "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "HAS_STORE": store,
        "WITH_LSE": False, "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}, {'store and new' if store else 'new tokens'}"
    return build(prefill_kernel, "prefill", target, dtype, dim, variant, t, constants, plain=plain)


def decode(target: str, dtype: torch.dtype, dim: int, *, tokens: int = 1, heads: int = 4, plain: bool = True) -> Row:
    t = decode_tiles(dim, dtype, tokens * heads, target)
    constants = {
        "HEADS": heads, "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "APPEND": True, "SPLIT": True,
        "PRECISION": t.precision,
    }  # fmt: skip
    pointers = {"out": "*fp32"}
    variant = f"group of {heads}, {tokens} tokens"
    return build(decode_kernel, "decode", target, dtype, dim, variant, t, constants, pointers, plain)


def join(target: str, dtype: torch.dtype, dim: int) -> Row:
    t = Tiles(0, 1, 3, dim, "")
    return build(join_kernel, "join", target, dtype, dim, "", t, {"HEADS": 4, "D": dim, "COLUMNS": 32, "AT_ONCE": 32})


def append(target: str, dtype: torch.dtype, dim: int) -> Row:
    t = Tiles(64, 4, 3, triton.next_power_of_2(dim), "")
    return build(append_kernel, "append", target, dtype, dim, "", t, {"D": dim, "WIDTH": t.width, "ROWS": 64})


def gradient_q(target: str, dtype: torch.dtype, dim: int, *, squared: bool, heads: int = 4, plain: bool = True) -> Row:
    t = gradient_q_tiles(dim, dtype, heads, target)
    heads_up = triton.next_power_of_2(heads)
    constants = {
        "HEADS": heads, "HEADS_UP": heads_up, "POSITIONS": t.block_m // heads_up, "SINKS_UP": 1, "SQUARED": squared,
        "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}, {'squared' if squared else 'signed'}"
    return build(gradient_q_kernel, "influence q", target, dtype, dim, variant, t, constants, plain=plain)


def changing_sinks(target: str, dtype: torch.dtype, dim: int, heads: int = 4, plain: bool = True) -> Row:
    t = gradient_q_tiles(dim, dtype, heads, target)
    heads_up = triton.next_power_of_2(heads)
    constants = {
        "HEADS": heads, "HEADS_UP": heads_up, "POSITIONS": t.block_m // heads_up, "SQUARED": True, "D": dim,
        "WIDTH": t.width, "BLOCK_M": t.block_m, "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}"
    return build(changing_sinks_kernel, "influence sinks", target, dtype, dim, variant, t, constants, plain=plain)


def gradient_kv(target: str, dtype: torch.dtype, dim: int, heads: int = 4, plain: bool = True) -> Row:
    t = gradient_kv_tiles(dim, dtype, target)
    constants = {"HEADS": heads, "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "PRECISION": t.precision}
    variant = f"group of {heads}"
    return build(gradient_kv_kernel, "influence kv", target, dtype, dim, variant, t, constants, plain=plain)


def quick() -> list[Row]:
    """Return the most used configurations: bf16, head sizes 64 and 128, every target."""
    half = torch.bfloat16
    rows = []
    for target in TARGETS:
        rows += [prefill(target, half, 128, store=True), decode(target, half, 128)]
        rows += [gradient_q(target, half, 64, squared=False), changing_sinks(target, half, 64)]
        rows += modified(target)[:2]
    return rows


def modified(target: str) -> list[Row]:
    """Every kernel that attends, with a soft-cap and learned sinks."""
    half = torch.bfloat16
    return [
        prefill(target, half, 128, store=True, plain=False), decode(target, half, 128, plain=False),
        prefill(target, half, 256, store=True, plain=False), decode(target, half, 256, plain=False),
        gradient_q(target, half, 64, squared=True, plain=False), gradient_kv(target, half, 64, plain=False),
        changing_sinks(target, half, 64, plain=False),
    ]  # fmt: skip


def matrix() -> list[Row]:
    """Return all head sizes in bf16, some in fp16, fp32; with or without store; few or many rows; both estimators."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    rows = []
    for target in TARGETS:
        for dtype, dims in ((bf16, (64, 80, 96, 128, 256, 512)), (fp16, (128,)), (fp32, (64, 128))):
            for dim in dims:
                rows += [prefill(target, dtype, dim, store=True), decode(target, dtype, dim)]
        rows += [prefill(target, bf16, dim, store=False) for dim in (64, 128)]
        rows += [decode(target, bf16, 128, tokens=tokens) for tokens in (4, 16)]
        for dtype, dims in ((bf16, (64, 80, 96, 128)), (fp16, (128,)), (fp32, (64,))):
            for dim in dims:
                rows += [gradient_q(target, dtype, dim, squared=squared) for squared in (True, False)]
                rows += [gradient_kv(target, dtype, dim), changing_sinks(target, dtype, dim)]
        rows += [join(target, bf16, 128), append(target, bf16, 128), *modified(target)]
    return rows


def _type(arg: str, dtype: str) -> str:
    if arg in INTS32:
        return "*i32"
    if arg in INTS64:
        return "*i64"
    if arg in FLOATS:
        return "*fp32"
    if arg in SCALARS:
        return "fp32"
    pointers = {"q", "k", "v", "out", "k_store", "v_store", "dout", "dq", "dk", "dv"}
    return f"*{dtype}" if arg in pointers else "i32"


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


def markdown(rows: list[Row]) -> str:
    head = [
        "| kernel | target | type | head size | variant | tile rows | warps | stages | registers "
        "| shared KiB | spill bytes | tensor cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    body = [
        f"| {r.kernel} | {r.target} | {r.dtype} | {r.head_size} | {r.variant} | {r.rows or ''} | {r.warps} | "
        f"{r.stages} | {r.registers} | {r.shared / 1024:.0f} | {r.spills} | {r.tensor_cores or '-'} |"
        for r in rows
    ]
    return "\n".join(head + body) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="24 compilations")
    parser.add_argument("--out", type=Path, help="folder of the table; benchmarks/results for the whole matrix")
    args = parser.parse_args()
    rows = quick() if args.quick else matrix()
    out = args.out or (None if args.quick else Path(__file__).parent / "results")
    if out:
        run = provenance() | {"triton": triton.__version__}
        replace_json(out / "triton-aot.json", {"run": run, "rows": [asdict(r) for r in rows]})
        note = f"Compiled ahead of time, no device, triton {run['triton']}, {run['date']}.\n\n"
        replace(out / "triton-aot.md", (note + markdown(rows)).encode())
    print(markdown(rows))
    bad = [(r, fault) for r in rows for fault in r.faults()]
    for row, fault in bad:
        print(f"{row.kernel} {row.target} {row.dtype} D={row.head_size} {row.variant}: {fault}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
