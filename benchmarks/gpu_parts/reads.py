"""Time decode steps that keep everything and read a share of its bytes, beside those that read all."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from gpu_parts.cases import mixes, packed
from gpu_parts.correctness import compare
from gpu_parts.flashinfer_decode import flashinfer_call
from gpu_parts.kernels import DIM, DTYPE, GROUPS, HEADS, library
from gpu_parts.measure import Bench, Row

from moa.kernels import reference
from moa.kernels.backend import load
from moa.kernels.call import Packed, Reading
from moa.kernels.paged.calls import summarising
from moa.kernels.registry import ANYWHERE
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store, allocate, select
from moa.kernels.triton import operations as kernels
from moa.plans.reading import COARSE, READ_STEPS, read_bytes
from moa.plans.span import BLOCK

SHARES = (32, 16, 8)
"""Of the bytes of all keys and values, in 1/256."""


def run(bench: Bench, report: dict[str, object]) -> Iterator[Row]:
    """Yield first a row that compares a step with the reference, then rows of times."""
    heads, groups, dim = (4, 2, 16) if bench.dry else (HEADS, GROUPS, DIM)
    bandwidth = float(str(report["copy_bytes_per_s"]))
    yield from bench.cell("read against the reference", lambda: [checked(bench, heads, groups, dim)])
    for length, batch in ((640, 1),) if bench.dry else sizes(bench):
        yield from bench.cell(
            f"read {length} x {batch}", lambda: timed(bench, length, batch, heads, groups, dim, bandwidth)
        )


def sizes(bench: Bench) -> list[tuple[int, int]]:
    """Return lengths and batches, and note those that are too large."""
    every = [(n, b) for b in (16, 1, 64, 4) for n in (32768, 8192, 131072, 16384, 65536)]
    return bench.sizes("read", every, 2 * 2 * GROUPS * DIM)


def checked(bench: Bench, heads: int, groups: int, dim: int) -> Row:
    """Compare a step of a ragged batch, one row of which has drafts, with the float64 reference."""
    lengths, new = (np.array([420]), np.array([2])) if bench.dry else (np.array([3000, 900, 70]), np.array([1, 5, 1]))
    stores = [_store(bench, n, 1, groups, dim) for n in lengths.tolist()]
    seen = mixes(groups)[0].visibility(4096, bench.device)
    (q, offsets), (k, _), (v, _) = (packed(new, h, dim, DTYPE, bench.device) for h in (heads, groups, groups))
    reading, softmax, found, wanted = _reading(bench, groups, 24), Softmax(dim**-0.5), [], []
    for i, (store, past) in enumerate(zip(stores, lengths.tolist(), strict=True)):
        rows = slice(int(offsets[i]), int(offsets[i + 1]))
        count = rows.stop - rows.start
        one = torch.tensor([0, count], dtype=torch.int32, device=bench.device)
        batch = Packed(one, torch.tensor([past], device=bench.device), count, nonempty=True)
        call = {"batch": batch, "seen": seen, "reading": reading, "softmax": softmax}
        wide = replace(store, k=store.k.double(), v=store.v.double(), summaries=_summaries(store).clone(), scratch={})
        wanted.append(reference.read(*(x[rows].double() for x in (q, k, v)), store=wide, **call))
        found.append(kernels.read(q[rows], k[rows], v[rows], store=store, **call))
    return {
        "what": "read",
        "dtype": str(DTYPE),
        "head size": dim,
        **compare(torch.cat(found), torch.cat(wanted), DTYPE),
    }


def timed(
    bench: Bench, length: int, batch: int, heads: int, groups: int, dim: int, bandwidth: float
) -> list[Row]:  # fmt: skip
    """Time one token per sequence, each call as a CUDA graph; `dense` calls read every key.

    Keys are random, so the pages chosen lie further apart than those of text.
    """
    store = _store(bench, length - 1, batch, groups, dim)
    whole = replace(store, summaries=None, scratch={})
    (q, offsets), (k, _), (v, _) = (
        packed(np.ones(batch, np.int64), h, dim, DTYPE, bench.device) for h in (heads, groups, groups)
    )
    past = torch.full((batch,), length - 1, dtype=torch.int64, device=bench.device)
    seen = mixes(groups)[0].visibility(length + BLOCK, bench.device)
    where = {"batch": Packed(offsets, past, 1, nonempty=True), "seen": seen, "softmax": Softmax(dim**-0.5)}
    shares = SHARES[:1] if bench.dry else SHARES
    calls = {"dense": bench.graph(lambda: kernels.decode(q, k, v, store=whole, **where))}
    for share in shares:
        reading = _reading(bench, groups, share)
        calls[f"read {share}"] = bench.graph(lambda r=reading: kernels.read(q, k, v, store=store, reading=r, **where))
    keys, values = (torch.randn(batch, groups, length, dim, device=bench.device, dtype=DTYPE) for _ in range(2))
    others = library(bench, [q[:, :, None], keys, values], enable_gqa=True)
    calls |= {f"{name} dense": bench.graph(call) for name, call in others.items()}
    if length % BLOCK == 0 and (other := flashinfer_call(bench, q, keys, values)):
        calls["flashinfer dense"] = bench.graph(other)
    times = bench.time(calls)
    rows = []
    for share in shares:
        ours = times[f"read {share}"]
        size = batch * groups * int(read_bytes(share, length, length, COARSE, dim))
        dense = {name: seconds for name, seconds in times.items() if not name.startswith("read")}
        rows.append({
            "kernel": "read", "length": length, "batch": batch, "read": share / READ_STEPS, "ours ms": 1e3 * ours,
            **{f"{name} ms": 1e3 * seconds for name, seconds in dense.items()}, "read MB": size / 1e6,
            "share of copy bandwidth": size / ours / bandwidth, "fastest dense / ours": min(dense.values()) / ours,
        })  # fmt: skip
    return rows


def _reading(bench: Bench, groups: int, share: int) -> Reading:
    return Reading(*(torch.full((groups,), n, dtype=torch.int32, device=bench.device) for n in (share, COARSE)))


def _store(bench: Bench, length: int, batch: int, groups: int, dim: int) -> Store:
    """Return slabs that hold the same random text of `length` tokens for every sequence, and have room for 64 more."""
    slots = np.full((1, groups), -(-(length + BLOCK) // BLOCK) * BLOCK)
    store = allocate(slots, dim, DTYPE, bench.device, summaries=True)
    seen = mixes(groups)[0].visibility(length + BLOCK, bench.device)
    (k, offsets), (v, _) = (packed(np.array([length]), groups, dim, DTYPE, bench.device) for _ in range(2))
    empty = torch.zeros(1, dtype=torch.int64, device=bench.device)
    writer = summarising(load(ANYWHERE.name))
    writer.append(store, k, v, batch=Packed(offsets, empty, length, nonempty=True), seen=seen)
    return store if batch == 1 else select(store, torch.zeros(batch, dtype=torch.int64, device=bench.device))


def _summaries(store: Store) -> torch.Tensor:
    assert store.summaries is not None
    return store.summaries
