"""What profiling costs beside a plain forward and backward pass under the same checkpointing.

Alternates both in one process; time as a ratio, and the extra peak memory against the length with a straight-line fit.
Writes benchmarks/results/profile_cost.json and .md.

    python benchmarks/profile_cost.py MODEL [--lengths 1024,2048,4096,8192] [--repeats 3]
"""

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moa.kernels import influence
from moa.load import load_model
from moa.profiler import recorder as recorder_module
from moa.profiler.calibration import whole_text
from moa.profiler.collect import run_backward
from moa.profiler.estimators import fisher
from moa.profiler.recorder import recording

RESULTS = Path(__file__).parent / "results"


def resident() -> int:
    """Bytes this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def peak(work: Callable[[], None]) -> tuple[float, int]:
    """Seconds, and the most memory held meanwhile over what was held before."""
    before, most, stop = resident(), [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            most[0] = max(most[0], resident() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    stop.set()
    thread.join()
    return took, most[0]


class Plain:
    """Library attention in the recorder's place: the same graph without the influence."""

    @staticmethod
    def apply(q: Any, k: Any, v: Any, scale: float, recorder: Any, layer: int) -> Any:
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0)[None] for x in (k, v))
        return nn.functional.scaled_dot_product_attention(q[None], k, v, is_causal=True, scale=scale)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--lengths", default="1024,2048,4096,8192")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model, _ = load_model(options.model, dtype="float32")
    recorded = recorder_module._Recorded
    rows = []
    for length in map(int, options.lengths.split(",")):
        rng = random.Random(length)
        sample = whole_text([rng.randrange(model.config.vocab_size) for _ in range(length)])
        took: dict[str, list[float]] = {"plain": [], "fisher": []}
        held: dict[str, list[int]] = {"plain": [], "fisher": []}
        for _ in range(options.repeats):
            for name, function in (("plain", Plain), ("fisher", recorded)):
                recorder_module._Recorded = function  # type: ignore[misc,assignment]
                with recording(model, fisher, (64,)):
                    seconds, memory = peak(lambda: run_backward(model, sample, "given", "nll", torch.Generator()))
                took[name].append(seconds)
                held[name].append(memory)
        row = {"length": length, **{n: {"seconds": took[n], "peak_bytes": max(held[n])} for n in took}}
        row["ratio"] = statistics.median(took["fisher"]) / statistics.median(took["plain"])
        rows.append(row)
        print(
            length,
            {n: round(statistics.median(t), 2) for n, t in took.items()},
            f"ratio {row['ratio']:.2f}",
            flush=True,
        )
    lengths, peaks = [r["length"] for r in rows], [r["fisher"]["peak_bytes"] for r in rows]
    slope, offset = np.polyfit(lengths, peaks, 1) if len(rows) > 1 else (0.0, 0.0)
    worst = max(abs(slope * n + offset - p) / p for n, p in zip(lengths, peaks, strict=True)) if len(rows) > 1 else 0.0
    fit = {"bytes_per_token": float(slope), "offset": float(offset), "worst_relative_error": float(worst)}
    note = {"torch": torch.__version__, "threads": torch.get_num_threads(), "tile": influence.BLOCK}
    (RESULTS / "profile_cost.json").write_text(json.dumps({"rows": rows, "memory_fit": fit, **note}, indent=1) + "\n")
    lines = [
        "| length | plain, s | with influence, s | ratio | peak memory with influence, MiB |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        plain, ours = (statistics.median(r[n]["seconds"]) for n in ("plain", "fisher"))
        lines.append(
            f"| {r['length']} | {plain:.2f} | {ours:.2f} | {r['ratio']:.2f} | {r['fisher']['peak_bytes'] / 2**20:.0f} |"
        )
    lines += ["", f"Memory fit: {slope:.0f} bytes per token, worst error {worst:.0%}."]
    (RESULTS / "profile_cost.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
