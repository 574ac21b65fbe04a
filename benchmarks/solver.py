"""Measure the search for models of 8B and 70B size: seconds, proven gap, peak memory.

The harm tables are those of a measured profile, resampled: every group of the large model is a random group of the
small one, scaled at random (log-normal, sigma 0.3) with noise in every cell (sigma 0.02). The large models take texts
of 32,768 tokens, and plans are for all of them, as far as a default search looks beyond the profile. Each size runs in
a process of its own, through the code of `moa search`: its default grid, under one density, as `--max-density` asks
for, and under three budgets at once. Writes solver.json and solver.md to `--results`; every limit is in them with the
figure measured for it. Seconds are CPU seconds of all threads, of which an idle machine takes no more on the clock;
clock seconds are beside them. It takes about 2 minutes.

    python benchmarks/solver.py PROFILE
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from provenance import about, provenance, write
from tables import claim, claimed, head, line

from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.profiler.profile import Profile, describe
from moa.search.budget import parse
from moa.search.choose import choose
from moa.search.grid import grid
from moa.search.lengths import Lengths

LONGEST = 32768
"""Longest text that the large models take."""
SIZES = {"8B": (32, 8), "70B": (80, 8)}  # layers, KV heads
GIGABYTES = {"8B": 8 * 8192 * 131_072 / 1e9, "70B": 8 * 8192 * 327_680 / 1e9}
"""Size of a dense cache at 8,192 tokens, 8 sequences, 2 bytes per element."""
SECONDS = {"8B": 3.0, "70B": 10.0}
GAP, MEMORY = 1e-3, 1e9


def budgets(size: str) -> dict[str, list[tuple[str, str]]]:
    """Return a density alone, as in most searches, and three budgets at once, the last of which conflict."""
    gb = GIGABYTES[size]
    return {
        "0.5": [("density", "0.5")],
        "0.25": [("density", "0.25")],
        "half": [("density", "0.5@1024"), ("density", "0.5@4096"), ("kv_gb", f"{0.5 * gb:.4g}@8192x8")],
        "quarter": [("density", "0.4@1024"), ("density", "0.25@4096"), ("kv_gb", f"{0.25 * gb:.4g}@8192x8")],
        "mixed": [("density", "0.35@1024"), ("density", "0.3@4096"), ("kv_gb", f"{0.2 * gb:.4g}@8192x8")],
    }


def resample(small: Profile, layers: int, heads: int) -> Profile:
    """Return a profile of a larger model, of the same sources and lengths."""
    rng = np.random.default_rng(0)
    groups = layers * heads
    origin = rng.integers(len(small.model.ruled_layers) * small.model.kv_heads, size=groups)
    scale = rng.lognormal(0, 0.3, (groups, 1, 1))
    cuts = {}
    for cut, table in small.cuts.items():
        noise = rng.lognormal(0, 0.02, (groups, *table.shape[-2:])).astype(np.float32)
        drawn = table.reshape(len(table), -1, *table.shape[-2:])[:, origin] * (scale * noise).astype(np.float32)
        cuts[cut] = drawn.reshape(len(table), layers, heads, *table.shape[-2:])
    model = ModelInfo(
        architecture="LlamaForCausalLM", layers=layers, query_heads=8 * heads, kv_heads=heads, head_size=128,
        rope={"theta": 500000.0, "type": "default"}, name="resampled",
    )  # fmt: skip
    return replace(small, model=model, cuts=cuts, retrieval=None, meta={"max_length": LONGEST})


def run(size: str, path: str) -> dict[str, Any]:
    """Return all cases of one size, run in this process."""
    profile = resample(Profile.load(path), *SIZES[size])
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    cases = []
    for name, given in budgets(size).items():
        begin, cpu = time.perf_counter(), time.process_time()
        _, solution = choose(profile, [parse(*each) for each in given], time_limit=60)
        cases.append({
            "case": name, "budgets": [f"{kind} {text}" for kind, text in given], "value": solution.value,
            "gap": solution.gap, "lagrangian_gap": 1 - solution.lagrangian / solution.value,
            "given": solution.columns[0], "left": solution.columns[1], "solver_seconds": solution.seconds,
            "seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu,
        })  # fmt: skip
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rules = len(grid(Lengths.of(profile).all, profile.variants))
    return {"size": size, "rules": rules, "cases": cases, "profile_peak_bytes": made, "peak_bytes": peak}


def claims(sizes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the limits, and what was measured."""
    found = []
    for size in sizes:
        slowest, gap = (max(case[key] for case in size["cases"]) for key in ("cpu_seconds", "gap"))
        name = size["size"]
        found.append(claim(f"{name}: CPU seconds of a search at most", slowest, SECONDS[name], at_most=True))
        found.append(claim(f"{name}: proven gap at most", gap, GAP, at_most=True))
        found.append(claim(f"{name}: peak memory in GB at most", size["peak_bytes"] / 1e9, MEMORY / 1e9, at_most=True))
    return found


def markdown(found: dict[str, Any]) -> str:
    columns = "size", "budgets", "choices", "left", "search, CPU s", "search, clock s", "solver, clock s", "gap"
    lines = [f"{about(found['run'])}", "", *head([*columns, "gap by duality alone"])]
    for size in found["sizes"]:
        for case in size["cases"]:
            seconds = (f"{case[name]:.2f}" for name in ("cpu_seconds", "seconds", "solver_seconds"))
            gaps = (f"{case[name]:.1e}" for name in ("gap", "lagrangian_gap"))
            what = f"{case['case']}: {', '.join(case['budgets'])}"
            lines.append(line(size["size"], what, f"{case['given']:,}", f"{case['left']:,}", *seconds, *gaps))
    sizes = found["sizes"]
    peaks = ", ".join(f"{s['peak_bytes'] / 1e9:.2f} GB for {s['size']}" for s in sizes)
    lines += ["", f"{sizes[0]['rules']} rules per group. Peak memory of the process, profile included: {peaks}.", ""]
    return "\n".join([*lines, *claimed(found["claims"])]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--size", choices=SIZES, help=argparse.SUPPRESS)  # run this one here and print JSON
    options = parser.parse_args()
    try:
        if options.size:
            print(json.dumps(run(options.size, options.profile)))
            return 0
        profile = Profile.load(options.profile)
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    sizes = []
    for size in SIZES:
        command = [sys.executable, __file__, options.profile, "--size", size]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        sizes.append(json.loads(printed.splitlines()[-1]))  # HiGHS may print lines of its own before
        print("measured", size, file=sys.stderr, flush=True)
    found = {
        "run": provenance(seed=0) | {"scipy": scipy.__version__},
        "runs": 1, "profile": describe(Path(options.profile), profile), "sizes": sizes, "claims": claims(sizes),
    }  # fmt: skip
    write(options.results, "solver", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
