"""Time the prefill and decode kernels beside library attention, with ratios inside one run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_parts.cases import Mix, mixes, packed
from gpu_parts.flashinfer_decode import flashinfer_call
from gpu_parts.flex import flex_call
from gpu_parts.measure import Bench, Call, Row
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

from moa.kernels.call import Packed
from moa.kernels.softmax import Softmax
from moa.kernels.triton import operations as kernels

HEADS, GROUPS, DIM = 32, 8, 128  # one layer of Llama-3-8B
DTYPE = torch.bfloat16


DRY = 320
"""Tokens of a dry run: every mix but the dense one drops blocks there."""


def run_prefill(bench: Bench, report: dict[str, Any]) -> Iterator[Row]:
    """Yield rows of prefill, those of the sizes with goals first."""
    heads, groups, dim = (2, 2, 16) if bench.dry else (HEADS, GROUPS, DIM)
    for length in (DRY,) if bench.dry else (32768, 4096, 16384, 65536, 131072):
        for mix in _mixes(bench, groups):
            yield from bench.cell(f"prefill {length} {mix.name}", lambda: [prefill(bench, mix, length, heads, dim)])


def run_decode(bench: Bench, report: dict[str, Any]) -> Iterator[Row]:
    """Yield rows of decode, those of the sizes with goals first."""
    heads, groups, dim = (4, 2, 16) if bench.dry else (HEADS, GROUPS, DIM)
    bandwidth = report["copy_bytes_per_s"]
    for length, batch in ((DRY, 2),) if bench.dry else decode_sizes(bench):
        for mix in _mixes(bench, groups):
            yield from bench.cell(
                f"decode {length} x {batch} {mix.name}",
                lambda: [decode(bench, mix, length, batch, heads, dim, bandwidth)],
            )


def _mixes(bench: Bench, groups: int) -> list[Mix]:
    return mixes(groups, 128) if bench.dry else mixes(groups)


def decode_sizes(bench: Bench) -> list[tuple[int, int]]:
    """Return lengths and batches, and note those whose dense cache is too large."""
    every = [(n, b) for b in (16, 1, 64, 4) for n in (16384, 4096, 131072, 32768, 65536)]
    return bench.sizes("decode", every, 2 * 2 * GROUPS * DIM)


def prefill(bench: Bench, mix: Mix, length: int, heads: int, dim: int) -> Row:
    """Time one sequence. Keys of the libraries' calls are expanded to all heads beforehand, outside the clock."""
    groups, scale = len(mix.sink), dim**-0.5
    (q, cu_seqlens), (k, _), (v, _) = (
        packed(np.array([length]), h, dim, DTYPE, bench.device) for h in (heads, groups, groups)
    )
    seen, past = mix.visibility(length, bench.device), torch.zeros(1, dtype=torch.int64, device=bench.device)
    call = {"batch": Packed(cu_seqlens, past, length, nonempty=True), "seen": seen, "softmax": Softmax(scale)}
    whole = [x.transpose(0, 1)[None].contiguous() for x in (q, k, v)]
    wide = [whole[0], *(x.repeat_interleave(heads // groups, 1) for x in whole[1:])]
    calls: dict[str, Call] = {"ours": lambda: kernels.attend(q, k, v, **call)}
    calls |= library(bench, wide, is_causal=True)
    if flex := flex_call(bench, *whole, *seen):
        calls["flex"] = flex
    times = bench.time(calls)
    kept = mix.kept(length)
    row = {"kernel": "prefill", "mix": mix.name, "length": length, "batch": 1, "kept": kept}
    row |= {f"{name} ms": 1e3 * seconds for name, seconds in times.items()}
    row["TFLOP/s"] = 4 * heads * dim * kept * length * (length + 1) / 2 / times["ours"] / 1e12
    if "flash" in times:
        row["ours / (kept * flash)"] = times["ours"] / (kept * times["flash"])
    return row


def decode(bench: Bench, mix: Mix, length: int, batch: int, heads: int, dim: int, bandwidth: float) -> Row:
    """Time one token per sequence, each call as a CUDA graph. `dense` calls read every key, at any mix."""
    groups, scale = len(mix.sink), dim**-0.5
    store = mix.store(np.full(batch, length), dim, DTYPE, bench.device)
    (q, cu_seqlens), (k, _), (v, _) = (
        packed(np.ones(batch, np.int64), h, dim, DTYPE, bench.device) for h in (heads, groups, groups)
    )
    past = torch.full((batch,), length - 1, dtype=torch.int64, device=bench.device)
    seen, new = mix.visibility(length + 64, bench.device), Packed(cu_seqlens, past, 1, nonempty=True)
    keys, values = (torch.randn(batch, groups, length, dim, device=bench.device, dtype=DTYPE) for _ in range(2))
    queries = q[:, :, None]
    calls = {
        "ours": bench.graph(lambda: kernels.decode(q, k, v, batch=new, seen=seen, store=store, softmax=Softmax(scale)))
    }
    calls |= {f"{n} dense": bench.graph(f) for n, f in library(bench, [queries, keys, values], enable_gqa=True).items()}
    if flex := flex_call(bench, queries, keys, values, *seen):
        calls["flex"] = bench.graph(flex)
    if other := flashinfer_call(bench, q, keys, values):
        calls["flashinfer dense"] = bench.graph(other)
    times = bench.time(calls)
    live = mix.live_bytes(length, batch, dim * DTYPE.itemsize)
    row = {"kernel": "decode", "mix": mix.name, "length": length, "batch": batch, "density": mix.density(length)}
    row |= {f"{name} ms": 1e3 * seconds for name, seconds in times.items()}
    row |= {"kept MB": live / 1e6, "share of copy bandwidth": live / times["ours"] / bandwidth}
    return row


def library(bench: Bench, qkv: list[Tensor], **options: bool) -> dict[str, Call]:
    """Return library attention by each fast back-end that takes these tensors; note those that refuse."""
    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
    if bench.dry:
        backends = {"flash": SDPBackend.MATH}
    calls = {}
    for name, backend in backends.items():
        call = partial(_under, backend, lambda: sdpa(*qkv, **options))
        try:
            call()
        except RuntimeError as error:
            bench.skipped.append(f"SDPA {name} {tuple(qkv[0].shape)}: {str(error).splitlines()[0]}")
            continue
        calls[name] = call
    return calls


def _under(backend: SDPBackend, call: Callable[[], Tensor]) -> Tensor:
    with sdpa_kernel(backend):
        return call()
