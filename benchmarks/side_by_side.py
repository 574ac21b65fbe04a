r"""Compare plans with the methods of kvpress (`peers/theirs.py` lists them) on the same samples, at equal bytes.

The model of our rows runs under plans: what `moa search` finds at a density, and uniform, two-group and per-layer plans
in no more bytes at the whole length (`baselines.py`); with `--absolute` also what is found by MoA's own influence. The
peers run in an environment of their own, by `make peers-env`; this script starts it. A peer reads a text with full
attention, and then drops entries until those left take what `Plan.kv_bytes` says that the plan's cache needs for it;
that cache grows in steps, and may have up to 1/8 more in reserve. AdaKV and KVzip only mask what they would drop, and
allocate as much as dense. After the text a peer's cache grows with every token. All use the defaults of kvpress.

Samples are made once, as token ids: needles in formats by which no choice of this project was made, one or four in a
text, asked about after the text was compressed (withheld) or at its end (given, one question for each text); and
windows of held-out text, whose ends are decoded behind what was compressed. Times are medians, rows in turn, at the
greatest length and the first density: a prefill with its compression (KVzip's has kvpress load a tokenizer too), and
decode steps behind it; memory is the peak of resident memory in both. Each environment has a dense row.

With `--reads`, a group of rows of its own is compared at equal bytes read in a step, summaries included, on the same
samples: searched plans, uniform reads, and the selections of Quest, UNIQUE and RocketKV's two stages on moa's runtime
(`reads_baselines.py`). They are not timed, since selections by other methods are written in plain PyTorch.

Writes peers.json and peers.md to `--results`. If it is stopped, the same command continues from `peers.partial`.

    make peers-env profile absolute reads
    python benchmarks/side_by_side.py .model/SmolLM2-135M-Instruct build/profile.safetensors \
        --absolute build/absolute.safetensors --reads build/reads.safetensors
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import baselines
from pages_parts.peers import peers
from peers import ours, reading, theirs
from peers.claims import claims
from peers.samples import NEEDLES, TAIL, TASKS, known, parts
from peers.shares import token_bytes
from provenance import about, place, provenance, said, write
from reads_baselines import SHARES
from resumed import kept
from tables import claimed

from moa.bench.filling import held_out
from moa.bench.timing import Times
from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal, key
from moa.evaluation.samples import Part
from moa.hf.fingerprint import fingerprint
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.model import ModelInfo
from moa.plans.plan import Plan
from moa.profiler.profile import Profile, describe


class Bench:
    """The model, its plans and samples at each length, and the journal of what was measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        profile = Profile.load(options.profile)
        self.profile = describe(options.profile, profile)
        absolute = None if options.absolute is None else baselines.load_absolute(options.absolute)
        self.plans = {n: ours.plans(profile, absolute, n, options.longest, options.densities) for n in options.lengths}
        reads = None if options.reads is None else Profile.load(options.reads)
        self.profiles = {
            name: describe(path, found) for name, path, found in (("absolute", options.absolute, absolute),
                                                                  ("reads", options.reads, reads)) if found
        }  # fmt: skip
        self.reading = {n: reading.entries(reads, options.shares, n) if reads else [] for n in options.lengths}
        self.model, self.tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        self.info, self.run = ModelInfo.of(self.model), provenance(self.model)
        self.weights = {"weights": fingerprint(self.model), "dtype": self.run["dtype"]}
        self.counts = {"single": options.needles, "four": -(-options.needles // 2), "tail": options.windows}
        self.every = self.counts | {name: self.counts[like] for like, name in zip(*NEEDLES.values(), strict=True)}
        parts = {n: Part(n, self.every, TASKS) for n in options.lengths}
        self.samples = {n: part.samples(self.tokenizer, options.seed) for n, part in parts.items()}
        options.results.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(options.results / "peers.partial")

    def budgets(self, length: int) -> dict[str, Plan]:
        """Return the searched plan of each density, whose bytes every row at this length has at most."""
        return {name.split()[1]: plan for name, plan in self.plans[length] if name.split()[0] == ours.PLAN}

    def every_plan(self) -> dict[int, list[tuple[str, Plan]]]:
        """Return the plans of all our rows at each length."""
        return {n: [*plans, *((name, each.plan) for name, each in self.reading[n])] for n, plans in self.plans.items()}

    def quality(self, length: int) -> list[dict[str, Any]]:
        """Return our rows at a length."""
        found = compare(
            self.model, self.tokenizer, self.plans[length], [Part(length, self.counts, TASKS)], uniform=False,
            seed=self.options.seed, journal=self.journal, progress=said(f"{length:,} tokens"),
        )  # fmt: skip
        rows, dense = found["rows"], found["rows"][0]
        for row in rows:
            row |= known(row, dense, self.samples[length])
        if self.reading[length]:
            rows += reading.measure(
                self.model, self.tokenizer, self.reading[length], length, self.every, self.options.seed, self.journal
            )
        for row in rows:
            row["cache"]["kept"] = min(row["cache"]["predicted"], row["cache"]["allocated"])
        return list(rows)

    def timed(self, length: int, row: str) -> bool:
        """Return whether a row is timed: at the greatest length, dense and the first density."""
        first = row.startswith("dense") or row.split()[-1] == f"{self.options.densities[0]:g}"
        return first and length == max(self.options.lengths)

    def times(self, length: int) -> dict[str, list[Any]]:
        """Return the rounds of each of our rows at a length."""
        ids = held_out(self.tokenizer, length + ours.STEPS + 1)
        rows = [each for each in (("dense", None), *self.plans[length]) if self.timed(length, each[0])]
        found: dict[str, list[Any]] = {name: [] for name, _ in rows}
        for i in range(self.options.rounds):
            for name, plan in rows:
                under = None if plan is None else plan.fingerprint()
                own = key(**self.weights | place(self.run), plan=under, ids=ids.tolist(), round=i, measure="times")
                measure = partial(ours.once, self.model, plan, ids)
                found[name].append(kept(self.journal, own, measure, row=name, length=length, round=i))
        return found

    def items(self, length: int) -> list[theirs.Item]:
        """Return what the other side measures at a length: every sample, then the rounds of times."""

        def item(what: dict[str, Any], about: dict[str, Any], depends: dict[str, Any]) -> theirs.Item:
            rows = theirs.rows(self.budgets(length), len(what["context"]), self.model.dtype)
            return theirs.Item(what, rows, {**about, "length": length}, self.weights | depends)

        found = [item(parts(s), {"task": s.task, "sample": s.index}, {}) for s in self.samples[length]]
        (ids,) = held_out(self.tokenizer, length + ours.STEPS + 1).tolist()
        what = {"kind": "timed", "context": ids[:length], "then": [ids[length:]]}
        for i in range(self.options.rounds):
            every = item(what, {"round": i}, place(self.run))
            rows = {name: row for name, row in every.rows.items() if self.timed(length, name)}
            found += [replace(every, rows=rows)] if rows else []
        return found


def joined(bench: Bench, length: int, items: list[theirs.Item]) -> list[dict[str, Any]]:
    """Return all rows at a length, of both sides, from what the journal has."""
    rows, times, samples = bench.quality(length), bench.times(length), bench.samples[length]
    found = {name: [bench.journal.get(item.key(name)) for item in items if name in item.rows] for name in items[0].rows}
    scored = {
        name: [theirs.scored(bench.tokenizer, *each) for each in zip(samples, own, strict=False)]
        for name, own in found.items()
    }
    for name, own in found.items():
        rows.append(theirs.row(name, samples, scored[name], scored[theirs.DENSE]))
        times[name] = own[len(samples) :]
    plans = bench.budgets(length)
    for row in rows:
        cache, taken = row["cache"], times.get(row["row"])
        dense = cache["tokens"] * token_bytes(bench.info, bench.model.dtype)
        row["environment"] = "kvpress" if row["row"] in found else "moa"
        row["kept"], row["allocated"] = cache["kept"] / dense, cache["allocated"] / dense
        if (density := row["row"].split()[-1]) in plans:
            row["budget"] = density
            row["over"] = cache["kept"] / plans[density].kv_bytes(cache["tokens"], dtype=bench.model.dtype)
        if taken:
            row["prefill"] = Times(tuple(each["prefill"] for each in taken)).summary()
            row["step"] = Times(tuple(step for each in taken for step in each["steps"])).summary()
            row["peak"] = max(each["peak"] for each in taken)
    return rows


def run(bench: Bench) -> dict[str, Any]:
    """Return all that is measured; what the journal has is not measured again."""
    options = bench.options
    items = {length: bench.items(length) for length in options.lengths}
    for length in options.lengths:
        bench.quality(length)
        bench.times(length)
    settings = {"model": options.model, "dtype": bench.run["dtype"], "threads": bench.run["threads"]}
    every = [item for each in items.values() for item in each]
    versions = theirs.measure(options.python, settings, every, bench.journal, said("kvpress"))
    rows = [row for length in options.lengths for row in joined(bench, length, items[length])]
    return {
        "run": bench.run | {"seed": options.seed},
        "peers": versions | {"methods": theirs.PEERS},
        "settings": {"tail": TAIL, "steps": ours.STEPS, "rounds": options.rounds},
        "model": bench.info.model_dump(mode="json"),
        "rows": rows,
        "claims": claims(rows),
        "profile": bench.profile,
        **bench.profiles,
        "plans": {f"{name} at {n}": plan.to_dict() for n, plans in bench.every_plan().items() for name, plan in plans},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a local folder")
    parser.add_argument("profile", type=Path, help="made with --retrieval-score")
    parser.add_argument("--absolute", type=Path, help=f"a profile made with --estimator {baselines.ABSOLUTE}")
    parser.add_argument("--reads", type=Path, help="a profile made with --reads")
    parser.add_argument("--shares", nargs="+", default=["1/8"], choices=SHARES, help="bytes read, with --reads")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096], help="tokens")
    parser.add_argument("--longest", type=int, default=8192, help="longest intended length, where densities hold")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.25, 0.125])
    parser.add_argument("--needles", type=int, default=10, help="texts with one needle, and half as many with four")
    parser.add_argument("--windows", type=int, default=4, help="windows of held-out text")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of timing")
    parser.add_argument("--seed", type=int, default=71, help="of the needles")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--python", type=Path, default=theirs.PYTHON, help="of the peers' environment")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        theirs.check(options.python)
        options.lengths = sorted(set(options.lengths))
        if min(options.needles, options.windows, options.rounds) < 1:
            raise MoaError("needles, windows and rounds must be 1 or more each")
        found = run(Bench(options))
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    page = [about(found["run"]), "", peers(found), "", *claimed(found["claims"])]
    write(options.results, "peers", found, "\n".join(page) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
