"""Compare ways to choose what a decode step reads, at equal bytes read and kept: needles, and perplexity as decoded.

All rows are plans of moa's runtime. Where a method selects in another way than moa does, its back-end differs from the
device's default one in that alone (`reads_parts/backend.py`). Where everything is kept:

- searched: what `moa search --max-read --keep-all` finds.
- uniform: every group reads the same share, by moa's own pages and summaries.
- quest: pages of 16 by the bounds of each channel (arXiv 2406.10774), whose summaries alone are 1/16 of all bytes. Its
  first two layers are whole, if the others can then fetch pages within the budget.
- quest as counted there: the same with two whole layers, neither these nor summaries counted, so it reads more than the
  budget.
- unique: pages of 8 by the mean and half of the deviation's length (arXiv 2605.27740).
- recycled: a step reads everything once in so many that this is half of the budget, and what it gave most weight the
  steps up to the next one (arXiv 2411.05787).

Where half is kept, beside the search within both budgets:

- window, keydiff: RocketKV's two stages (arXiv 2502.14051) with moa's eviction and selection: every group keeps a
  window, or a window and the keys most unlike the others, in no more bytes than the searched plan, and reads the same
  share.

No other row reads more than its budget, summaries included, nor keeps more bytes than the searched plan. Needles have
formats by which no choice of this project was made (`moa.evaluation.haystack.HELD_OUT`). Writes reads_baselines.json
and reads_baselines.md to `--results`. If it is stopped, the same command continues from `reads_baselines.partial`.

    make reads
    python benchmarks/reads_baselines.py .model/SmolLM2-135M-Instruct build/reads.safetensors
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from held_out import TASKS
from provenance import about, provenance, said, write
from reads_parts.backend import added, by_summaries, recycled, recycles
from reads_parts.selection import Selector, budget
from reads_parts.variants import QUEST, UNIQUE
from tables import compared

import moa
from moa.evaluation.comparison import compare
from moa.evaluation.journal import Journal
from moa.evaluation.samples import Part
from moa.hf.load import load_model
from moa.plans.errors import MoaError
from moa.plans.patterns import KeyDiffWindow
from moa.plans.plan import FULL, Plan, Rule
from moa.plans.reading import READ_STEPS, token_bytes
from moa.plans.span import BLOCK
from moa.profiler.profile import Profile, describe

SHARES = {"1/8": 1 / 8, "1/16": 1 / 16, "1/32": 1 / 32}
WHOLE = 2
"""First layers that Quest reads whole."""
KEPT = 1 / 2
SELECTORS = {"quest": QUEST, "unique": UNIQUE, "quest-free": replace(QUEST, free=True)}


class Entry(NamedTuple):
    """A row: a plan, and the back-end whose selection it has.

    Attributes:
        name: Its name in the table.
        plan: The plan.
        read: Part of all bytes that a step reads on average, summaries included.
        backend: The method's back-end; None for moa's own.
    """

    name: str
    plan: Plan
    read: float
    backend: str | None = None


def every(share: float) -> int:
    """Return in how many steps Recycled Attention reads everything once, for half of the bytes of a share."""
    return round(2 / share)


def methods() -> dict[str, Any]:
    """Return the choice of every back-end that is added, by its name."""
    found = {name: by_summaries(selector) for name, selector in SELECTORS.items()}
    return found | {f"recycled{every(share)}": recycled(every(share)) for share in SHARES.values()}


def entries(profile: Profile, share: float, length: int) -> Iterator[Entry]:
    """Yield the rows of a budget at a length."""
    found = _searched(profile, share, 1.0, length)
    yield Entry("searched", found, found.read_density(length))
    uniform = reading(Plan.dense(profile.model), share, length)
    yield Entry("uniform", uniform, uniform.read_density(length))
    yield quest(profile.model, share, length)
    yield uncounted(profile.model, share, length)
    steps = int(share * READ_STEPS)
    plan = _uniform(profile.model, {}, steps)
    yield Entry("unique", plan, read_by(UNIQUE, plan, length), "unique")
    often = every(share)
    since, again = often * (often - 1) / 2, recycles(often, steps / READ_STEPS, length)
    yield Entry("recycled", plan, (length + since + (often - 1) * again) / (often * length), f"recycled{often}")
    half = _searched(profile, share, KEPT, length)
    yield Entry("searched, half kept", half, half.read_density(length))
    for kind in (Rule, KeyDiffWindow):
        made = reading(window(half, kind, length), share, length)
        yield Entry(f"{'window' if kind is Rule else 'keydiff'}, half kept", made, made.read_density(length))


def _searched(profile: Profile, share: float, kept: float, length: int) -> Plan:
    limits = {"read": f"{share}@{length}"} | ({"density": f"{kept}@{length}"} if kept < 1 else {})
    return moa.find_plan(profile, limits, keep_all=kept == 1, max_length=max(length, *profile.lengths)).plan


def _uniform(model: Any, whole: dict[int, list[Rule]], steps: int) -> Plan:
    """Return the plan of full attention that reads a share in 1/256, but for layers that are given."""
    return Plan.from_rules(model, whole, defaults=FULL.reading(steps))


def quest(model: Any, share: float, length: int) -> Entry:
    """Return Quest's row: the first layers whole where the others can then fetch pages."""
    part = WHOLE / len(model.ruled_layers)
    rest = int(READ_STEPS * (share - part) / (1 - part)) if part < share else 0
    n = torch.tensor([length])
    if rest and int(budget(QUEST, n, rest / READ_STEPS, model.head_size).pages):
        plan, name = _uniform(model, _whole(model), rest), "quest"
    else:
        plan, name = _uniform(model, {}, int(share * READ_STEPS)), "quest, no layer whole"
    return Entry(name, plan, read_by(QUEST, plan, length), "quest")


def uncounted(model: Any, share: float, length: int) -> Entry:
    """Return Quest's row by its paper's count: of bytes, whole layers and summaries are left out."""
    plan, free = _uniform(model, _whole(model), int(share * READ_STEPS)), SELECTORS["quest-free"]
    first, last = (int(x) for x in budget(free, torch.tensor([length]), share, model.head_size)[:2])
    summaries = (last - first) * QUEST.fine.nbytes(model.head_size) / (length * token_bytes(model.head_size))
    chosen = 1 - min(1.0, WHOLE / len(model.ruled_layers))
    return Entry("quest as counted there", plan, read_by(free, plan, length) + chosen * summaries, "quest-free")


def _whole(model: Any) -> dict[int, list[Rule]]:
    return {layer: [FULL] * model.kv_heads for layer in model.ruled_layers[:WHOLE]}


def read_by(selector: Selector, plan: Plan, length: int) -> float:
    """Return the part of all bytes that a step reads whose pages a selector chooses."""
    size, n = plan.model.head_size, torch.tensor([length])
    each = [1.0 if rule.read == 1 else float(budget(selector, n, rule.read, size).share)
            for rules in plan.groups.values() for rule in rules]  # fmt: skip
    return sum(each) / len(each)


def reading(plan: Plan, share: float, length: int) -> Plan:
    """Return the plan whose rules all have the greatest `read` that keeps it within a share of the bytes."""
    (rule,) = {rule for rules in plan.groups.values() for rule in rules}
    shares = (rule.reading(k) for k in range(READ_STEPS, 0, -1))
    made = (Plan.from_rules(plan.model, {}, defaults=each) for each in shares)
    found = next((found for found in made if found.read_density(length) <= share), None)
    if found is None:
        raise MoaError(f"{share:g} of the bytes at {length} tokens is less than what a {rule.pattern} always reads")
    return found


def window(like: Plan, kind: type[Rule], length: int) -> Plan:
    """Return the plan of one window for all groups, the widest of a pattern that takes no more bytes than a plan."""
    room, tokens = like.kv_bytes(length, dtype="bfloat16"), range(length, 0, -BLOCK)
    made = (Plan.from_rules(like.model, {}, defaults=reads(kind(alpha=n, beta=0))) for n in tokens)
    found = next(plan for plan in made if plan.kv_bytes(length, dtype="bfloat16") <= room)
    return Plan.from_rules(like.model, {}, defaults=found.defaults.whole)


def reads(rule: Rule) -> Rule:
    """Return the rule with some `read`, so that its bytes have those of summaries."""
    return rule.reading(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("profile", type=Path, help="made with --reads")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096], help="tokens")
    parser.add_argument("--shares", nargs="+", default=["1/8", "1/16"], choices=SHARES, help="bytes read")
    parser.add_argument("--needles", type=int, default=16, help="contexts with one needle, and half as many with four")
    parser.add_argument("--windows", type=int, default=2, help="windows of held-out text")
    parser.add_argument("--seed", type=int, default=61, help="of the needles")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    counts = {"single": options.needles, "four": -(-options.needles // 2), "decoded": options.windows}
    rows: list[dict[str, Any]] = []
    plans: dict[str, Any] = {}
    try:
        profile = Profile.load(options.profile)
        options.results.mkdir(parents=True, exist_ok=True)
        model, tokenizer = load_model(options.model, dtype=options.dtype, device="cpu")
        journal = Journal(options.results / "reads_baselines.partial")
        for length in options.lengths:
            asked = [(f"{each.name}, {share} read", each) for share in options.shares
                     for each in entries(profile, SHARES[share], length)]  # fmt: skip
            plans |= {f"{name} at {length}": each.plan.to_dict() for name, each in asked}
            measured: dict[str, dict[str, Any]] = {}
            with added(methods(), model.device):
                for backend in dict.fromkeys(each.backend for _, each in asked):
                    mine = [(name, each.plan) for name, each in asked if each.backend == backend]
                    found = compare(
                        model, tokenizer, mine, [Part(length, counts, TASKS)], uniform=False, backend=backend,
                        seed=options.seed, journal=journal,
                        progress=said(f"{length:,} tokens, {backend or 'moa'}"),
                    )  # fmt: skip
                    measured |= {row["row"]: row for row in found["rows"]}
            rows += [measured["dense"], *(measured[name] | {"read": each.read} for name, each in asked)]
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    result = {
        "run": provenance(model, seed=options.seed, runs=1), "rows": rows, "plans": plans,
        "profile": describe(options.profile, profile),
    }  # fmt: skip
    page = [about(result["run"]), "", *compared(rows)]
    write(options.results, "reads_baselines", result, "\n".join(page) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
