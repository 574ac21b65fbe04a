"""Time attention alone on the CPU: back-ends `torch` and `numba`, dense library attention; SmolLM2-135M by default.

A prefill is of one layer and one text. A decode step goes through `--layers` layers of caches, so that keys come from
memory. The rules mix full groups, constant windows and growing spans to reach each density. Variants alternate within
one run; the figures are medians. `bound` is the time dense attention would take for the kept share of the work
(prefill) or of the bytes (decode). Reads are decode steps of back-end `numba` that keep all keys and fetch 1/8 or 1/16
of their bytes: `bytes` is the share that they fetch, summaries included, and `of_bound` the time that it would take the
step that reads all, over their own. Keys are random, so the pages chosen lie further apart than those of text.

    python benchmarks/attention_cpu.py --part prefill decode --json attention_cpu.json
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from provenance import provenance
from torch.nn.functional import scaled_dot_product_attention

from moa.bench import timing
from moa.kernels.backend import load
from moa.kernels.call import Decode, Packed, Reading, Visibility
from moa.kernels.paged import summaries
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities
from moa.kernels.torch.operations import attend
from moa.plans.reading import COARSE, READ_STEPS, read_bytes, token_bytes
from moa.plans.replace import replace_json
from moa.plans.span import Reach, first_block, linear, span

HEADS, GROUPS, SIZE = 9, 3, 64
MIXES = {  # sink, alpha, beta256 per group; density at 8,192 about what the name says
    "1.0": ([0, 0, 0], [0, 0, 0], [256, 256, 256]),
    "0.5": ([64, 64, 64], [0, 512, 0], [256, 0, 110]),
    "0.25": ([64, 64, 64], [1024, 512, 128], [0, 0, 138]),
}

Rules = tuple[np.ndarray, np.ndarray, np.ndarray]


def timed(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each call, run in turns, and their IQR as a share of the median."""

    def measure(run: Callable[[], object]) -> list[float]:
        return [1e3 * timing.timed(run, torch.device("cpu"))]

    calls = {name: partial(measure, run) for name, run in variants.items()}
    timing.alternate(calls, 1)  # warm up
    return {name: {"median": t.median, "iqr": t.iqr} for name, t in timing.alternate(calls, repeats).items()}


def visibility(rules: Rules, length: int) -> Visibility:
    sink, alpha, beta = (x[:, None] for x in rules)
    first = first_block(sink, alpha, beta, np.arange(length // 64 + 1))
    return Visibility(torch.from_numpy(first).int(), torch.from_numpy(rules[0]).int())


def prefill(length: int, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    q, k, v = (torch.randn(1, h, length, SIZE, dtype=dtype) for h in (HEADS, GROUPS, GROUPS))
    packed = {n: x[0].transpose(0, 1) for n, x in (("q", q), ("k", k), ("v", v))}
    batch = Packed(torch.tensor([0, length], dtype=torch.int32), torch.tensor([0]), length, nonempty=True)

    def ours(rules: Rules) -> Callable[[], object]:
        seen = visibility(rules, length)
        return lambda: attend(**packed, batch=batch, seen=seen, softmax=Softmax(SIZE**-0.5))

    def dense() -> object:
        return scaled_dot_product_attention(
            q, k.repeat_interleave(HEADS // GROUPS, 1), v.repeat_interleave(HEADS // GROUPS, 1), is_causal=True
        )

    mixes = {name: tuple(np.array(x) for x in mix) for name, mix in MIXES.items()}
    result = timed({"dense": dense} | {name: ours(rules) for name, rules in mixes.items()}, repeats)
    n = np.arange(1, length + 1)[:, None]
    for name, rules in mixes.items():
        kept = float(span(*rules, n).sum() / (GROUPS * n.sum()))
        ideal = kept * result["dense"]["median"]
        result[name] |= {"kept": kept, "bound": ideal, "of_bound": ideal / result[name]["median"]}
    return {"part": "prefill", "length": length, "batch": 1, "dtype": str(dtype), "ms": result}


def decode(length: int, batch: int, layers: int, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    q, k, v = (torch.randn(batch, h, SIZE, dtype=dtype) for h in (HEADS, GROUPS, GROUPS))
    start = Packed(torch.arange(batch + 1, dtype=torch.int32), torch.full((batch,), length - 64), 1, nonempty=True)
    caches = [torch.randn(2, batch, GROUPS, length, SIZE).to(dtype) for _ in range(layers)]
    mask = torch.ones(batch, 1, 1, length, dtype=torch.bool)

    def dense() -> None:
        for cache in caches:
            cache[0, :, :, -1], cache[1, :, :, -1] = k, v
            keys, values = (x.repeat_interleave(HEADS // GROUPS, 1) for x in cache)
            scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask)

    def dense_grouped() -> None:
        for cache in caches:
            cache[0, :, :, -1], cache[1, :, :, -1] = k, v
            scaled_dot_product_attention(q[:, :, None], *cache, attn_mask=mask, enable_gqa=True)

    def ours(rules: Rules) -> tuple[dict[str, Callable[[], None]], int]:
        """Return the times of a step by each back-end on the same caches, and the bytes of these caches."""
        stores, reach = [], Reach(np.column_stack(rules), [linear] * len(rules[0]))
        for _ in range(layers):
            store = allocate(capacities(reach, np.full(batch, length)), SIZE, dtype, "cpu")
            store.k.normal_()
            store.v.normal_()
            stores.append(store)
        seen = visibility(rules, length)

        def run(decode: Decode) -> Callable[[], None]:
            at = start

            def steps() -> None:
                nonlocal at
                at = at._replace(past=at.past + 1)  # as in decoding: `torch` keeps what it can from step to step
                for store in stores:
                    decode(q, k, v, batch=at, seen=seen, store=store, softmax=Softmax(SIZE**-0.5))

            return steps

        return {name: run(load(name).decode) for name in ("torch", "numba")}, sum(x.nbytes for x in stores)

    made = {name: ours(tuple(np.array(x) for x in mix)) for name, mix in MIXES.items()}
    runs: dict[str, Callable[[], None]] = {"repeat_kv": dense, "enable_gqa": dense_grouped}
    for name, (steps, _) in made.items():
        runs |= {f"{name} {backend}": step for backend, step in steps.items()}
    result = timed(runs, repeats)
    whole = sum(x.nbytes for x in caches)
    sizes = {"repeat_kv": whole, "enable_gqa": whole} | {n: size for n, (_, size) in made.items()}
    for name, row in result.items():
        size = sizes[name.split()[0]]
        row |= {"kept": size / whole, "GB/s": size / row["median"] / 1e6}
    return {"part": "decode", "length": length, "batch": batch, "layers": layers, "dtype": str(dtype), "ms": result}


def reads(length: int, batch: int, layers: int, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    q, k, v = (torch.randn(batch, h, SIZE, dtype=dtype) for h in (HEADS, GROUPS, GROUPS))
    at = Packed(torch.arange(batch + 1, dtype=torch.int32), torch.full((batch,), length - 64), 1, nonempty=True)
    before = Packed((length - 64) * torch.arange(batch + 1, dtype=torch.int32), 0 * at.past, length - 64)
    rules = tuple(np.array(x) for x in MIXES["1.0"])
    seen, run, stores = visibility(rules, length), load("numba"), []
    assert run.read is not None
    read = run.read
    for _ in range(layers):
        store = allocate(np.full((batch, GROUPS), length), SIZE, dtype, "cpu", summaries=True)
        store.k.normal_()
        store.v.normal_()
        summaries.update(store, batch=before, seen=seen)
        stores.append(store)

    def steps(share: int) -> Callable[[], None]:
        reading, now = Reading(*(torch.full((GROUPS,), x, dtype=torch.int32) for x in (share, COARSE))), at

        def step() -> None:
            nonlocal now
            now = now._replace(past=now.past + 1)
            softmax = Softmax(SIZE**-0.5)
            for store in stores:
                if share == READ_STEPS:
                    run.decode(q, k, v, batch=now, seen=seen, store=store, softmax=softmax)
                else:
                    read(q, k, v, batch=now, seen=seen, reading=reading, store=store, softmax=softmax)

        return step

    shares = {f"1/{READ_STEPS // share}": share for share in (READ_STEPS, 32, 16)}
    result = timed({name: steps(share) for name, share in shares.items()}, repeats)
    n = length - 63  # the first step's
    for name, row in result.items():
        part = int(read_bytes(shares[name], n, n, COARSE, SIZE)) / token_bytes(SIZE) / n
        row |= {"bytes": part, "of_bound": part * result["1/1"]["median"] / row["median"]}
    return {"part": "reads", "length": length, "batch": batch, "layers": layers, "dtype": str(dtype), "ms": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["prefill", "decode", "reads"], default=["prefill", "decode"])
    parser.add_argument("--length", type=int, nargs="+", default=[8192])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 8], help="of decode and reads")
    parser.add_argument("--layers", type=int, default=30, help="of decode and reads")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the figures here")
    args = parser.parse_args()
    torch.manual_seed(0)
    ones = torch.ones(64 * 2**20)
    read = ones.nbytes / timed({"sum": ones.sum}, 5)["sum"]["median"] / 1e6
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, reads {read:.1f} GB/s (sum of 256 MiB)")
    results = []
    with torch.inference_mode():
        for dtype in (getattr(torch, name) for name in args.dtype):
            for length in args.length:
                if "prefill" in args.part:
                    results.append(report(prefill(length, dtype, args.repeats)))
                if "decode" in args.part:
                    results += [report(decode(length, b, args.layers, dtype, args.repeats)) for b in args.batch]
                if "reads" in args.part:
                    results += [report(reads(length, b, args.layers, dtype, args.repeats)) for b in args.batch]
    if args.json:
        run = provenance(seed=0, runs=args.repeats)
        run |= {"backend": "torch and numba", "dtype": " and ".join(args.dtype)}
        replace_json(Path(args.json), {"run": run, "repeats": args.repeats, "read_GB/s": read, "results": results})


def report(figures: dict[str, object]) -> dict[str, object]:
    """Print one case, and return it."""
    print(", ".join(f"{key} {value}" for key, value in figures.items() if key != "ms"))
    for name, values in figures["ms"].items():  # type: ignore[attr-defined]
        print(f"  {name:12}", "  ".join(f"{key} {value:.3g}" for key, value in values.items()), flush=True)
    return figures


if __name__ == "__main__":
    sys.exit(main())
