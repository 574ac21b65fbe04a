"""Compare every kernel with the float64 reference, on the device."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from gpu_parts.cases import mixes, packed
from gpu_parts.measure import Bench, Row
from torch import Tensor

from moa.kernels import influence as plain
from moa.kernels import reference
from moa.kernels.call import Packed
from moa.kernels.sink_contents import sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import Store
from moa.kernels.triton import operations as kernels
from moa.kernels.triton.influence import forward, influence_backward

LIMIT = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Relative error (Frobenius) that rounding explains: the inputs' own, in the weights and in the result."""


def run(bench: Bench, brief: bool) -> Iterator[Row]:
    """Yield a row per case, whose `agrees` is true or false."""
    dims, types = ((128,), (torch.bfloat16,)) if brief else ((128, 64, 80, 96, 256), tuple(LIMIT))
    if bench.dry:
        dims = (16,)
    for dim in dims:
        for dtype in types:
            for heads in (4,) if brief or bench.dry else (4, 1, 3, 8):
                what = f"attention {dim} {dtype} {heads}"
                yield from bench.cell(what, lambda: attention(bench, heads, dim, dtype))
            yield from bench.cell(f"influence {dim} {dtype}", lambda: [fisher(bench, dim, dtype)])


def attention(bench: Bench, heads: int, dim: int, dtype: torch.dtype) -> list[Row]:
    """Compare a prefill of a ragged batch, a chunk over the store, and decode steps, eager and as a graph."""
    lengths = np.array([1, 63, 64, 65] if bench.dry else [1, 63, 64, 65, 111, 1000])
    mix, name = mixes(8)[-1], {"dtype": str(dtype), "head size": dim, "group": heads}
    groups = len(mix.sink)
    seen, scale = mix.visibility(2000, bench.device), dim**-0.5
    zero = torch.zeros(len(lengths), dtype=torch.int64, device=bench.device)
    store = mix.store(lengths + 200, dim, dtype, bench.device)
    store.k.fill_(torch.nan)
    store.v.fill_(torch.nan)
    rows, past = [], zero
    for what, new in (("prefill", lengths), ("chunk", lengths % 90 + 20), ("decode", lengths % 4 + 1)):
        (q, cu_seqlens), (k, _), (v, _) = (
            packed(new, h, dim, dtype, bench.device) for h in (groups * heads, groups, groups)
        )
        where = {"batch": Packed(cu_seqlens, past, int(new.max()), nonempty=True), "seen": seen}
        call = {**where, "softmax": Softmax(scale)}
        want = reference.attend(q.double(), k.double(), v.double(), store=_double(store), **call)
        if what == "decode":
            again = replace(store, k=store.k.clone(), v=store.v.clone())
            replay_out: list[Tensor] = []
            bench.graph(lambda: replay_out.append(kernels.decode(q, k, v, store=again, **call)))()
            rows.append({"what": "decode in a graph", **name, **compare(replay_out[-1], want, dtype)})
            got = kernels.decode(q, k, v, store=store, **call)
        else:
            got = kernels.attend(q, k, v, store=store, **call)
            twin = replace(store, k=store.k.clone(), v=store.v.clone())
            kernels.append(store, k, v, **where)
            reference.append(twin, k, v, **where)
            same = all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in ((store.k, twin.k), (store.v, twin.v)))
            rows.append({"what": f"append after {what}", **name, "error": 0.0 if same else 1.0, "agrees": same})
        rows.append({"what": what, **name, **compare(got, want, dtype)})
        past = past + torch.from_numpy(new).to(bench.device)
    return rows


def fisher(bench: Bench, dim: int, dtype: torch.dtype) -> Row:
    """Compare the gradients and the table of cuts."""
    n, groups, heads = (130, 1, 3) if bench.dry else (777, 2, 3)
    q, k, v, dout = (
        torch.randn(h, n, dim, device=bench.device).to(dtype) for h in (groups * heads, groups, groups, groups * heads)
    )
    call = {"softmax": Softmax(dim**-0.5), "sinks": sinks("first", 64, 128) + sinks("keydiff", 64), "bin_size": 64}
    got = influence_backward(q, k, v, *forward(q, k, v, softmax=call["softmax"]), dout, **call)
    want = plain.influence_backward(q.double(), k.double(), v.double(), dout.double(), estimator=_fisher, **call)
    results = [compare(mine, theirs, dtype, 2.0) for mine, theirs in zip(got, want, strict=True)]
    worst = max(results, key=lambda result: result["error"])
    return {"what": "influence", "dtype": str(dtype), "head size": dim, "group": heads, **worst}


def _fisher(tile: plain.Tile) -> Tensor:
    mass, effect = tile.kept(tile.a), tile.kept(tile.a * tile.dp)
    delta: Tensor = (torch.where(mass > 1e-6, effect / mass, 0.0) - tile.d).sum(1)
    return delta.square()


def compare(got: Tensor, want: Tensor, dtype: torch.dtype, slack: float = 1.0) -> Row:
    error = float((got.double() - want.double()).norm() / want.double().norm())
    return {"error": error, "agrees": error <= slack * LIMIT[dtype]}


def _double(store: Store) -> Store:
    return replace(store, k=store.k.double(), v=store.v.double())
