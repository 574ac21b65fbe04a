"""Compile every Triton kernel without a device, and report registers, shared memory, spills, tensor-core use.

    python benchmarks/triton_aot.py                 the whole matrix into benchmarks/results/triton-aot.{json,md}
    python benchmarks/triton_aot.py --quick         the 73 that the tests check, printed unless --out names a folder

The exit code is 1 if a configuration spills that is not in `SPILLS`, exceeds the shared memory, or lacks a tensor-core
instruction where it should.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from aot_parts.build import SPILLS, TARGETS, Row
from aot_parts.configurations import (
    append,
    changing_sinks,
    decode,
    gradient_kv,
    gradient_q,
    join,
    pooled,
    prefill,
    reads,
    selection,
)
from provenance import about, provenance

from moa.plans.replace import replace, replace_json

HEADS = (1, 2, 3, 5, 7, 8)
"""Sizes of groups besides 4: all of them on sm_90, the first and one odd on the others, whose code differs little."""


def quick() -> list[Row]:
    """Return the most used configurations: bf16, head sizes 64 and 128, every target; decode in graphs on one."""
    half = torch.bfloat16
    rows = [*graphs("sm_90"), *selection("sm_90", half, 128), prefill("sm_90", half, 128, store=True, changing=True)]
    for target in TARGETS:
        rows += [prefill(target, half, 128, store=True), decode(target, half, 128)]
        rows += [gradient_q(target, half, 64, squared=False), gradient_kv(target, half, 128, heads=7)]
        rows += [changing_sinks(target, half, 64), *modified(target)[:2], *pooled(target, half, 128)]
    for target in ("sm_90", "gfx942"):
        rows += reads(target, half, 128)
    return rows


def graphs(target: str) -> list[Row]:
    """Return what a compiled decode step of one sequence and KV head launches: a size of 1 is a constant there."""
    half = torch.bfloat16
    return [
        prefill(target, half, 128, store=True, ones=True), decode(target, half, 128, ones=True),
        join(target, half, 128, ones=True), append(target, half, 128, ones=True),
        *reads(target, half, 128, ones=True),
    ]  # fmt: skip


def modified(target: str) -> list[Row]:
    """Every kernel that attends, with a soft-cap and learned sinks."""
    half = torch.bfloat16
    return [
        prefill(target, half, 128, store=True, plain=False), decode(target, half, 128, plain=False),
        prefill(target, half, 256, store=True, plain=False), decode(target, half, 256, plain=False),
        *reads(target, half, 128, plain=False)[-2:],
        gradient_q(target, half, 64, squared=True, plain=False), gradient_kv(target, half, 64, plain=False),
        changing_sinks(target, half, 64, plain=False),
    ]  # fmt: skip


def matrix() -> Iterator[Row]:
    """Yield all head sizes in bf16, some in fp16, fp32; every size of group; every choice that is compiled in."""
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for target in TARGETS:
        for dtype, dims in ((bf16, (64, 80, 96, 128, 256, 512)), (fp16, (128,)), (fp32, (64, 128, 256))):
            for dim in dims:
                yield from (prefill(target, dtype, dim, store=True), decode(target, dtype, dim))
                yield from pooled(target, dtype, dim)
        yield from (prefill(target, bf16, dim, store=False, lse=True) for dim in (64, 128))
        yield prefill(target, bf16, 128, store=False)
        yield from (decode(target, bf16, 128, tokens=tokens) for tokens in (4, 16))
        yield from (decode(target, bf16, 128, split=False), decode(target, bf16, 128, append=False))
        yield decode(target, fp32, 128, tokens=16)
        for dtype, dims in ((bf16, (64, 80, 96, 128, 256)), (fp16, (128,)), (fp32, (64, 128, 256))):
            for dim in dims:
                yield gradient_q(target, dtype, dim)
                yield from (gradient_kv(target, dtype, dim), changing_sinks(target, dtype, dim))
        yield gradient_q(target, bf16, 128, squared=False)
        yield from (gradient_q(target, bf16, 128, sinks=sinks) for sinks in (2, 8))
        yield from (prefill(target, bf16, dim, store=True, changing=True) for dim in (64, 128, 256))
        for dtype, dim in ((bf16, 64), (bf16, 80), (bf16, 128), (fp32, 128)):
            yield from selection(target, dtype, dim)
        for dtype, dims in ((bf16, (64, 80, 96, 128, 256, 512)), (fp16, (128,)), (fp32, (64, 128, 256))):
            for dim in dims:
                yield from (*reads(target, dtype, dim), append(target, dtype, dim, summaries=True))
        yield from reads(target, bf16, 128, tokens=16)
        for heads in HEADS if target == "sm_90" else HEADS[::4]:
            yield from (prefill(target, bf16, 128, store=True, heads=heads), decode(target, bf16, 128, heads=heads))
            yield from (gradient_q(target, bf16, 128, heads=heads), gradient_kv(target, bf16, 128, heads=heads))
            yield changing_sinks(target, bf16, 128, heads=heads)
            yield from (*reads(target, bf16, 128, heads=heads), *pooled(target, bf16, 128, heads=heads))
        yield from (join(target, bf16, 128), join(target, bf16, 128, reads=True), append(target, bf16, 128))
        yield from (*modified(target), *graphs(target))


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
    parser.add_argument("--quick", action="store_true", help="73 compilations")
    parser.add_argument("--out", type=Path, help="folder of the table; benchmarks/results for the whole matrix")
    args = parser.parse_args()
    rows = []
    for row in quick() if args.quick else matrix():
        rows.append(row)
        print(f"{len(rows)}: {row}", file=sys.stderr, flush=True)
    out = args.out or (None if args.quick else Path(__file__).parent / "results")
    if out:
        run = provenance() | {"triton": triton.__version__}
        replace_json(out / "triton-aot.json", {"run": run, "rows": [asdict(r) for r in rows]})
        note = f"Compiled ahead of time, without a device. {about(run)}\n\n"
        why = [f"- {kernel}, {kind}, head size {size}: {reason}" for (kernel, kind), (size, reason) in SPILLS.items()]
        exempt = "\n".join(
            ["", "May spill, from the head size on, with what a thread would have to hold:", "", *why, ""]
        )
        replace(out / "triton-aot.md", (note + markdown(rows) + exempt).encode())
    print(markdown(rows))
    bad = [(r, fault) for r in rows for fault in r.faults()]
    for row, fault in bad:
        print(f"{row.kernel} {row.target} {row.dtype} D={row.head_size} {row.variant}: {fault}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
