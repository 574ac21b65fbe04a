"""Time a hybrid under the dense plan beside the bare model: what a plan costs where it takes nothing away.

The model is random, of the shape of Qwen3.5's small ones: three layers of linear attention for each of full attention.
Both run in turns in one process, prefill and decode steps apart. Writes pass_through.json and pass_through.md to
`--results`.

    OMP_NUM_THREADS=1 python benchmarks/pass_through.py
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from models_parts.tiny import tiny_model
from provenance import about, provenance, write
from tables import claim, claimed, head, line

from moa.bench.timing import Times, alternate, decode, prefill
from moa.plans.plan import Plan
from moa.runtime.variant import Variant

SLOWEST = 1.03
"""Aim: the most time that the model takes under the dense plan, over what it takes bare."""
SHAPE: dict[str, Any] = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
    "num_hidden_layers": 8, "layer_types": [*["linear_attention"] * 3, "full_attention"] * 2,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 8, "linear_num_value_heads": 8,
    "max_position_embeddings": 32768, "initializer_range": 0.02,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000000.0, "mrope_section": [11, 11, 10], "mrope_interleaved": True,
        "partial_rotary_factor": 0.25,
    },
}  # fmt: skip


def measure(model: Any, length: int, rounds: int) -> dict[str, dict[str, Times]]:
    """Return the times of the bare model and of the model under the dense plan, by phase."""
    variants = {"bare": Variant(), "dense plan": Variant(Plan.dense(model))}
    ids = torch.randint(3, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    phases = {
        "prefill": lambda variant: prefill(model, variant, ids),
        "decode step": lambda variant: decode(model, variant, length, 1),
    }
    found = {}
    for phase, run in phases.items():
        calls = {name: partial(run, variant) for name, variant in variants.items()}
        alternate(calls, 1)  # does not count
        found[phase] = alternate(calls, rounds)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    model = tiny_model("qwen3_5_text", **SHAPE).float()
    rows = []
    for length in options.lengths:
        for phase, times in measure(model, length, options.rounds).items():
            ratio = times["dense plan"].median / times["bare"].median
            each = {name: taken.summary() for name, taken in times.items()}
            rows.append({"length": length, "phase": phase, "ratio": ratio, **each})
            print(length, phase, f"{ratio:.3f}", flush=True)
    slowest = max(row["ratio"] for row in rows)
    claims = [claim("time under the dense plan over the bare model's, at most", slowest, SLOWEST, at_most=True)]
    run = provenance(model, seed=0, runs=options.rounds)
    page = ["# A hybrid under the dense plan", "", about(run), ""]
    page += head(["tokens", "phase", "bare, ms (IQR)", "dense plan, ms (IQR)", "ratio"])
    for row in rows:
        spans = [f"{1000 * row[n]['median']:.2f} ({row[n]['iqr']:.1%})" for n in ("bare", "dense plan")]
        page.append(line(f"{row['length']:,}", row["phase"], *spans, f"{row['ratio']:.3f}"))
    page += ["", *claimed(claims), ""]
    write(options.results, "pass_through", {"run": run, "rows": rows, "claims": claims}, "\n".join(page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
