"""Measure what profiling costs beside a plain pass forward and backward with the same checkpointing, weights frozen.

Three passes alternate in one process: plain, with the influence of cuts, and with that of reads too (`moa profile
--reads`). Freed memory goes back to the system as under `moa profile` (`moa.bench.heap`). Passes of their own first
measure the peak of memory above what the process used before, by length, with a straight-line fit, and with what a
parabola's square term would add at the longest length. Then passes are timed, which gives ratios. Writes
profile_cost.json and profile_cost.md to `--results`. If it is stopped, the same command of the same commit continues
from `profile_cost.partial`. It takes an estimated 40 minutes on 2 idle cores.

    python benchmarks/profile_cost.py .model/SmolLM2-135M-Instruct
"""

import argparse
import random
import statistics
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from provenance import about, place, provenance, write
from tables import claim, claimed, head, line
from torch import nn

from moa.bench import timing
from moa.bench.heap import FREED, return_freed
from moa.evaluation.journal import Journal, key
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.reads import Effects
from moa.profiler.recorder import Recorder, recording
from moa.search.spread import iqr

WARM_UP = 256
"""Tokens of a first pass that does not count."""
WAYS = "plain", "fisher", "reads"
VARIANTS = ("sink_window", 64), ("keydiff_window", 64)
READS = 1.3
"""Aim: the most time that a pass with reads takes, over one without."""


class Plain:
    """Library attention in the recorder's place: the same graph without the influence."""

    @staticmethod
    def apply(q: Any, k: Any, v: Any, softmax: Any, *_: Any) -> Any:
        k, v = (x.repeat_interleave(q.shape[0] // k.shape[0], 0)[None] for x in (k, v))
        return nn.functional.scaled_dot_product_attention(q[None], k, v, is_causal=True, scale=softmax.scale)[0]


def measure(model: Any, length: int) -> dict[str, Any]:
    """Return the seconds of one pass of each kind, run in turns, and their peak bytes."""
    rng = random.Random(length)
    sample = whole_text([rng.randrange(model.config.vocab_size) for _ in range(length)])
    found = {}

    def run(recorder: Recorder, reads: bool) -> None:
        recorder.pulled = effects = Effects(sample, VARIANTS) if reads else None
        run_backward(model, sample, "given", "nll", torch.Generator())
        if effects is not None:
            effects.table(squared=True)

    for name in WAYS:
        place = patch("moa.profiler.recorder._Recorded", Plain) if name == "plain" else nullcontext()
        with place, recording(model, VARIANTS) as recorder:
            timing.reset_peak(model.device)
            before = timing.peak_bytes(model.device)  # what is in use now
            seconds = timing.timed(partial(run, recorder, name == "reads"), model.device)
            found[name] = {"seconds": seconds, "bytes": timing.peak_bytes(model.device) - before}
    return found


def row(length: int, runs: list[dict[str, Any]], exact: dict[str, Any]) -> dict[str, Any]:
    """Return median seconds and their ratios, with their IQR, and the peaks of the pass for memory.

    `ratio` is that of profiling to the plain pass, `reads_ratio` that of profiling with reads to profiling without.
    """
    both: dict[str, Any] = {"length": length}
    for name in WAYS:
        seconds = [run[name]["seconds"] for run in runs]
        both[name] = {"seconds": statistics.median(seconds), "iqr": iqr(seconds), "bytes": exact[name]["bytes"]}
    for says, way, over in (("", "fisher", "plain"), ("reads_", "reads", "fisher")):
        ratios = [run[way]["seconds"] / run[over]["seconds"] for run in runs]
        both |= {f"{says}ratio": statistics.median(ratios), f"{says}iqr": iqr(ratios)}
    return both


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return peak memory against length: bytes per token, the line's worst error, a square term's share at the end."""
    lengths, peaks = np.array([r["length"] for r in rows]), np.array([r["fisher"]["bytes"] for r in rows])
    slope, offset = np.polyfit(lengths, peaks, 1)
    square = np.polyfit(lengths, peaks, 2)[0] * lengths[-1] ** 2 if len(rows) > 2 else 0.0
    return {
        "bytes_per_token": float(slope),
        "offset": float(offset),
        "worst_relative_error": float(np.abs((slope * lengths + offset) / peaks - 1).max()),
        "square_term_at_the_longest": float(square / peaks[-1]),
    }


def markdown(found: dict[str, Any]) -> str:
    """Return the page."""
    columns = [
        "length", "plain, s (IQR)", "with influence, s (IQR)", "with reads, s (IQR)", "ratio (IQR)",
        "reads, ratio (IQR)",
    ]  # fmt: skip
    lines = [
        f"{found['model']}; {about(found['run'])}", "", f"Medians of {found['repeats']} runs.", "",
        *head([*columns, "plain, peak MiB", "with influence, peak MiB", "with reads, peak MiB"]),
    ]  # fmt: skip
    for r in found["rows"]:
        both = [r[name] for name in WAYS]
        ratios = (f"{r[f'{says}ratio']:.2f} ({r[f'{says}iqr']:.0%})" for says in ("", "reads_"))
        seconds = (f"{x['seconds']:.2f} ({x['iqr']:.0%})" for x in both)
        peaks = (f"{x['bytes'] / 2**20:.0f}" for x in both)
        lines.append(line(f"{r['length']:,}", *seconds, *ratios, *peaks))
    straight = found["memory_fit"]
    if straight:
        lines += [
            "",
            f"Peak memory with influence on a line: {straight['bytes_per_token']:,.0f} bytes per token, largest error "
            f"{straight['worst_relative_error']:.1%}; a parabola's square term at the longest length: "
            f"{straight['square_term_at_the_longest']:.1%} of the peak.",
        ]
    return "\n".join([*lines, "", *claimed(found["claims"])]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        lengths = sorted(set(options.lengths))
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "profile_cost.partial")
        model, _ = load_model(options.model, dtype="float32", device="cpu")
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    about_run = provenance(model, seed=lengths, runs=options.repeats)
    warm: dict[str, Any] = {}

    def run(length: int, repeat: int, what: str) -> dict[str, Any]:
        nonlocal warm
        labels = {"length": length, "repeat": repeat, "for": what}
        name = key(model=options.model, **place(about_run), **labels)
        if journal.get(name) is None:
            warm = warm or measure(model, WARM_UP)
            journal.put(name, measure(model, length), **labels)
            print("measured", *labels.values(), file=sys.stderr, flush=True)
        found: dict[str, Any] = journal.get(name)
        return found

    return_freed()
    exact = {length: run(length, 0, "memory") for length in lengths}
    rows = [row(n, [run(n, repeat, "time") for repeat in range(options.repeats)], exact[n]) for n in lengths]
    slowest = max(r["ratio"] for r in rows)
    reads = [
        claim(f"with reads over without, {r['length']:,} tokens, at most", r["reads_ratio"], READS, at_most=True)
        for r in rows
    ]
    found = {
        "run": about_run, "model": Path(options.model).name, "repeats": options.repeats, "freed": FREED, "rows": rows,
        "memory_fit": fit(rows) if len(rows) > 1 else None,
        "claims": [claim("with influence over plain, in seconds, at most", slowest, 2, at_most=True), *reads],
    }  # fmt: skip
    write(options.results, "profile_cost", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
