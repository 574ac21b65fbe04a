"""Measure speed and memory of whole models on the CPU: dense with transformers' two caches, density 1.0, two plans.

The plans are those that `moa search PROFILE --max-density D` finds at 0.5 and 0.25. Beside the second stands the same
plan with sinks of first keys alone, which shows what keydiff costs in time. One more plan keeps everything and reads an
eighth of it in each step. Steps run on caches that hold the keys of held-out text.

Prefills and decode steps of the variants alternate within one process; each variant's peak memory is measured in a
process of its own. Beside each figure is its bound: the time without attention plus, in a prefill, the kept part of
attention's time, and in a decode step, the time to read the kept keys. A step also has the bound that holds if weights
too are read as fast as this machine reads memory. Plans use `KVCache(plan, max_length=…)`, the counterpart of
`StaticCache`.

Writes cpu.json and cpu.md to `--results` (where the CPU has no AVX-512, cpu_avx2.json and .md); every claim is in them
with the figure measured for it. If it is stopped, the same command of the same commit continues from `cpu.partial`,
where every round is kept. It takes about 40 minutes on 2 idle cores.

    python benchmarks/cpu.py .model/SmolLM2-135M-Instruct --half build/plan-0.5.yaml --quarter build/plan-0.25.yaml
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from cpu_parts.report import (
    AVX512,
    DYNAMIC,
    EIGHTH,
    FIRST_KEYS,
    HALF,
    QUARTER,
    STATIC,
    WHOLE,
    WITHOUT,
    claims,
    markdown,
)
from provenance import place, provenance, write
from resumed import kept
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask
from twins import first_keys

from moa.bench import timing
from moa.bench.filling import Context, filled, held_out
from moa.bench.timing import Times, alternate
from moa.evaluation.journal import Journal, key
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.patterns import Rule
from moa.plans.plan import Plan
from moa.runtime.variant import Variant, allocated_bytes

CHECKED = 1024
"""Tokens of the equality check."""
TOLERANCE = 1e-3
"""Largest difference of logits from the reference's, in their standard deviations: float32 through 30 layers."""
STEPS = 5
"""Decode steps timed at a time."""
ROUNDS = {"prefill": 5, "decode": 6}
"""Rounds over the variants."""


class WithoutAttention(Variant):
    """The dense model with attention left out: what a plan cannot make faster."""

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        AttentionInterface.register("without", lambda module, query, *_, **__: (query.transpose(1, 2), None))
        AttentionMaskInterface.register("without", sdpa_mask)
        before = model.config._attn_implementation
        model.set_attn_implementation("without")
        try:
            yield
        finally:
            model.set_attn_implementation(before)


class Bench:
    """The model and the ways to run it; each method measures one cell."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        half, quarter = Plan.load(options.half), Plan.load(options.quarter)
        self.model, tokenizer = load_model(options.model, dtype="float32", device="cpu")
        self.variants = {DYNAMIC: Variant(), STATIC: Variant(fixed=True)}
        eighth = Plan.from_rules(self.model, {}, defaults=Rule(alpha=0, beta=1.0, read=1 / 8))
        plans = {WHOLE: Plan.dense(self.model), HALF: half, QUARTER: quarter, FIRST_KEYS: first_keys(quarter)}
        plans[EIGHTH] = eighth
        for name, plan in plans.items():
            plan.check(self.model)
            self.variants[name] = Variant(plan, fixed=True)
        self.ids = held_out(tokenizer, max(CHECKED, *options.lengths) + STEPS + 1)

    @cached_property
    def context(self) -> Context:
        """The text, read once by the dense model."""
        return Context.read(self.model, self.ids)

    def check(self) -> dict[str, float]:
        """Return every variant's distance from the reference, in standard deviations of the logits."""
        found = {name: timing.disagreement(self.model, v, self.ids[:, :CHECKED]) for name, v in self.variants.items()}
        wrong = {name: distance for name, distance in found.items() if not distance <= TOLERANCE}
        if wrong:
            raise MoaError(f"logits must be within {TOLERANCE} standard deviations of the reference's, found {wrong}")
        return found

    def rates(self) -> dict[str, Any]:
        """Return how fast this machine reads memory at best, and what every decode step reads besides keys."""
        ones = torch.ones(128 << 20)
        reads = alternate({"sum": lambda: [timing.timed(ones.sum, ones.device)]}, 7)["sum"]
        weights = sum(p.nbytes for p in self.model.parameters())
        if not self.model.config.tie_word_embeddings:  # else the head reads them
            weights -= self.model.get_input_embeddings().weight.nbytes
        return {"bytes_per_second": ones.nbytes / min(reads.seconds), "weights": weights}

    def prefill(self, length: int, round_: int) -> dict[str, Any]:
        """Return the seconds of each variant, and of the model without attention."""
        ways = self.variants | {WITHOUT: WithoutAttention()}
        for way in ways.values():  # warm up
            timing.prefill(self.model, way, self.ids[:, :256])
        ids = self.ids[:, :length]
        calls = {name: partial(timing.prefill, self.model, way, ids) for name, way in ways.items()}
        return {name: times.seconds for name, times in alternate(calls, 1).items()}

    def decode(self, length: int, batch: int, round_: int) -> dict[str, Any]:
        """Return the seconds of each variant's steps, and of steps without attention."""
        ways = self.variants | {WITHOUT: WithoutAttention(fixed=True)}
        how: dict[str, Any] = {"steps": STEPS, "context": self.context}
        calls = {name: partial(timing.decode, self.model, way, length, batch, **how) for name, way in ways.items()}
        return {name: times.seconds for name, times in alternate(calls, 1).items()}

    def kv_bytes(self, length: int, batch: int) -> dict[str, int]:
        """Return the bytes that each variant's cache holds."""
        return {n: allocated_bytes(filled(self.model, w, length, batch)) for n, w in self.variants.items()}

    def memory(self, variant: str, length: int, batch: int) -> dict[str, Any]:
        """Return the peak bytes of a process that runs this cell alone; see `peaks`."""
        plans = ["--half", self.options.half, "--quarter", self.options.quarter]
        command = [sys.executable, __file__, self.options.model, *plans, "--peaks-of", variant]
        command += ["--lengths", str(length), "--batches", str(batch)]
        return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))

    def peaks(self, variant: str) -> dict[str, int]:
        """Return this process's peak bytes: the model alone, with the back-end, in one prefill, in the batch's steps.

        The back-end's own code, which no plan makes larger or smaller, is there for dense too: what differs is due to
        the caches. What it takes to fill the batch's cache with random keys does not count.
        """
        way, length, batch = self.variants[variant], max(self.options.lengths), max(self.options.batches)
        timing.reset_peak(self.model.device)  # loading takes more for a while than it leaves
        found = {"model": timing.peak_bytes(self.model.device)}
        with self.variants[WHOLE].on(self.model):
            timing.reset_peak(self.model.device)
        found["backend"] = timing.peak_bytes(self.model.device)
        timing.prefill(self.model, way, self.ids[:, :length])
        found["prefill"] = timing.peak_bytes(self.model.device)
        cache = filled(self.model, way, length - 3, batch, room=length)  # a token beyond could need one more block
        timing.reset_peak(self.model.device)
        timing.decode_from(cache, self.model, way, batch, steps=2)
        return found | {"decode": max(found["prefill"], timing.peak_bytes(self.model.device))}


def run(bench: Bench, journal: Journal) -> dict[str, Any]:
    """Return every cell; those that the journal has are not measured again."""
    plans = {name: v.plan for name, v in bench.variants.items() if v.plan is not None}
    about = provenance(bench.model, seed=0)
    told = {name: plan.to_dict() for name, plan in plans.items()}
    identity = {**place(about), "model": bench.options.model, "plans": told}

    def cell(measure: Callable[..., dict[str, Any]], **what: Any) -> Any:
        name = key(**identity, measure=measure.__name__, what=what)
        return kept(journal, name, partial(measure, **what), measure=measure.__name__, **what)

    def rounds(measure: Callable[..., dict[str, Any]], **what: Any) -> dict[str, Any]:
        found = [cell(measure, **what, round_=i) for i in range(ROUNDS[measure.__name__])]
        times = {name: Times(tuple(s for each in found for s in each[name])) for name in found[0]}
        return what | {"seconds": {name: each.summary() for name, each in times.items()}}

    lengths, batches = bench.options.lengths, bench.options.batches
    shape = {"length": max(lengths), "batch": max(batches)}
    shapes = [{"length": n, "batch": b} for n in lengths for b in batches]
    return {
        "run": about,
        "rounds": ROUNDS | {"steps": STEPS},
        "equality": bench.check(),
        "rates": cell(bench.rates),
        "kept": {name: {str(n): plan.prefill_fraction(n) for n in lengths} for name, plan in plans.items()},
        "read": {str(n): plans[EIGHTH].read_density(n) for n in lengths},
        "density": {name: {str(n): plan.density(n) for n in lengths} for name, plan in plans.items()},
        "prefill": [rounds(bench.prefill, length=n) for n in lengths],
        "decode": [rounds(bench.decode, **where) | {"held": cell(bench.kv_bytes, **where)} for where in shapes],
        "memory": [
            {"variant": name, **shape, **cell(bench.memory, variant=name, **shape)}
            for name in bench.variants
            if name not in (FIRST_KEYS, EIGHTH)  # of whose memory nothing is asked
        ],
        "plans": {name: plan.to_dict() for name, plan in plans.items() if name in (HALF, QUARTER)},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--half", default="build/plan-0.5.yaml", help="plan of density 0.5 at the longest length")
    parser.add_argument("--quarter", default="build/plan-0.25.yaml", help="plan of density 0.25 there")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--peaks-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        options.lengths, options.batches = sorted(set(options.lengths)), sorted(set(options.batches))
        bench = Bench(options)
        if options.peaks_of:
            print(json.dumps(bench.peaks(options.peaks_of)))
            return 0
        options.results.mkdir(parents=True, exist_ok=True)
        found = run(bench, Journal(options.results / "cpu.partial"))
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    found["claims"] = claims(found)
    write(options.results, "cpu" if found["run"]["vectors"] == AVX512 else "cpu_avx2", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
