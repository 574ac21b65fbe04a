"""How long the search takes for models of 8B and 70B size: seconds, proven gap, peak memory.

The harm tables are those of a measured profile, resampled: every group of the large model is a random group of the
small one, scaled at random (log-normal, sigma 0.3) with noise in every cell (sigma 0.02). 8,192 tokens, where the
profile lacks them, are 4,096 stretched. Each size runs in a process of its own, through the code of `moa search`.
Writes benchmarks/results/solver.json and .md; the last line says whether the limits are kept. Seconds are CPU seconds
of all threads, of which an idle machine takes no more on the clock; clock seconds are printed beside them.

    python benchmarks/solver.py PROFILE
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from moa.evaluation.journal import replace_json
from moa.plans.model import ModelInfo
from moa.plans.replace import replace, replace_json
from moa.profiler.profile import Profile
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths

RESULTS = Path(__file__).parent / "results"
LENGTHS = (1024, 2048, 4096, 8192)
SIZES = {"8B": (32, 8), "70B": (80, 8)}  # layers, KV heads
GIGABYTES = {"8B": 8 * 8192 * 131_072 / 1e9, "70B": 8 * 8192 * 327_680 / 1e9}
"""Of a dense cache at 8,192 tokens, 8 sequences, 2 bytes per element."""
SECONDS = {"8B": 3.0, "70B": 10.0}
GAP, MEMORY = 1e-3, 1e9


def budgets(size: str) -> dict[str, list[tuple[str, str]]]:
    """Three budgets each: half, a quarter, and three that pull in different directions."""
    gb = GIGABYTES[size]
    return {
        "half": [("density", "0.5@1024"), ("density", "0.5@4096"), ("kv_gb", f"{0.5 * gb:.4g}@8192x8")],
        "quarter": [("density", "0.4@1024"), ("density", "0.25@4096"), ("kv_gb", f"{0.25 * gb:.4g}@8192x8")],
        "mixed": [("density", "0.35@1024"), ("density", "0.3@4096"), ("kv_gb", f"{0.2 * gb:.4g}@8192x8")],
    }


def resample(small: Profile, layers: int, heads: int) -> Profile:
    """A profile of a larger model at LENGTHS."""
    rng = np.random.default_rng(0)
    groups = layers * heads
    origin = rng.integers(small.model.layers * small.model.kv_heads, size=groups)
    scale = rng.lognormal(0, 0.3, (groups, 1, 1))
    cuts, tokens = {}, {}
    for source in small.sources:
        for n in LENGTHS:
            known = max(length for length in small.lengths if length <= n)
            table = small.cuts[source, known]
            table = table.reshape(len(small.sinks), -1, *table.shape[-2:])
            for axis in (2, 3):
                table = table.repeat(n // known, axis)
            noise = rng.lognormal(0, 0.02, (groups, *table.shape[2:])).astype(np.float32)
            drawn = table[:, origin] * (scale * noise).astype(np.float32)
            cuts[source, n] = drawn.reshape(len(small.sinks), layers, heads, *table.shape[2:])
            tokens[source, n] = small.tokens[source, known]
    model = ModelInfo(
        architecture="LlamaForCausalLM", layers=layers, query_heads=8 * heads, kv_heads=heads, head_size=128,
        rope={"theta": 500000.0, "type": "default"}, name="resampled",
    )  # fmt: skip
    return Profile(model, small.sinks, cuts, tokens, dict.fromkeys(cuts, 1))


def run(size: str, path: str) -> dict[str, Any]:
    """All cases of one size in this process."""
    profile = resample(Profile.load(path), *SIZES[size])
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cases = []
    for name, given in budgets(size).items():
        begin, cpu = time.perf_counter(), time.process_time()
        _, solution = choose(profile, [parse(*each) for each in given], lengths=Lengths(LENGTHS), time_limit=60)
        cases.append({
            "case": name, "budgets": [f"{kind} {text}" for kind, text in given], "value": solution.value,
            "gap": solution.gap, "lagrangian_gap": 1 - solution.lagrangian / solution.value,
            "given": solution.columns[0], "left": solution.columns[1], "solver_seconds": solution.seconds,
            "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu,
        })  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rules = len(grid(LENGTHS, profile.patterns))
    return {"size": size, "rules": rules, "cases": cases, "profile_peak_bytes": made, "peak_bytes": peak}


def markdown(sizes: list[dict[str, Any]]) -> str:
    lines = [
        "| size | budgets | choices | left | search, CPU s | search, clock s | solver, clock s | gap | "
        "gap by duality alone |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes:
        for case in size["cases"]:
            lines.append(
                f"| {size['size']} | {case['case']}: {', '.join(case['budgets'])} | {case['given']:,} | "
                f"{case['left']:,} | {case['cpu_seconds']:.2f} | {case['seconds']:.2f} | "
                f"{case['solver_seconds']:.2f} | {case['gap']:.1e} | {case['lagrangian_gap']:.1e} |"
            )
    peaks = ", ".join(f"{s['peak_bytes'] / 1e9:.2f} GB for {s['size']}" for s in sizes)
    lines += ["", f"{sizes[0]['rules']} rules per group. Peak memory of the process, profile included: {peaks}.", ""]
    verdicts = []
    for size in sizes:
        slowest, gap = (max(case[key] for case in size["cases"]) for key in ("cpu_seconds", "gap"))
        kept = slowest <= SECONDS[size["size"]] and gap <= GAP and size["peak_bytes"] <= MEMORY
        verdicts.append(
            f"{size['size']} {'kept' if kept else 'NOT kept'}: gap {gap:.1e} (limit {GAP:g}), {slowest:.2f} CPU s "
            f"(limit {SECONDS[size['size']]:g}), {size['peak_bytes'] / 1e9:.2f} GB (limit {MEMORY / 1e9:g})"
        )
    lines.append("; ".join(verdicts))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--size", choices=SIZES, help="run this one here and print JSON")
    options = parser.parse_args()
    if options.size:
        print(json.dumps(run(options.size, options.profile)))
        return
    sizes = []
    for size in SIZES:
        command = [sys.executable, __file__, options.profile, "--size", size]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        sizes.append(json.loads(found.splitlines()[-1]))  # HiGHS may print lines of its own before
    about = {"cores": os.cpu_count(), "machine": platform.machine(), "scipy": scipy.__version__}
    replace_json(RESULTS / "solver.json", {**about, "sizes": sizes})
    text = markdown(sizes)
    note = (
        f"`python benchmarks/solver.py PROFILE`; {about['machine']}, {about['cores']} cores, scipy {scipy.__version__}."
    )
    replace(RESULTS / "solver.md", f"{note}\n\n{text}\n".encode())
    print(text)


if __name__ == "__main__":
    main()
