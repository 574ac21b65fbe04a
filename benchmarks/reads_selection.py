"""Find the selection of query-aware reads that finds most for the bytes that it reads, summaries included.

Mass is measured on rows that read everything (ends of questions about needles with their answers, held-out text): the
share of attention that each selector of `reads_parts/variants.py` misses, and the error of the output. Needles are
measured with the best selectors in force while the model reads questions and answers them; every head and layer has the
same budget. Seeds and text differ from those of reported figures. Writes reads_selection.json and reads_selection.md to
`--results`. If it is stopped, the same command continues from `reads_selection.partial`; what rows saw lies in
`--scratch`. Several processes may measure the needles of a length each (`--only`), and one then combines all lengths.

    python benchmarks/reads_selection.py .model/SmolLM2-135M-Instruct
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import about, provenance, said, write
from reads_parts.model import Reader
from reads_parts.selection import Selector, choose
from reads_parts.variants import FINALISTS, LENGTHS, REFERENCES, STAGES
from tables import head, line

from moa.evaluation.haystack import Haystack, Question, haystack
from moa.evaluation.interval import wilson
from moa.evaluation.journal import Journal
from moa.evaluation.tasks.text import windows
from moa.hf.load import load_model
from moa.hf.tokens import encode
from moa.plans.errors import MoaError

SHARES = {"1": 1.0, "1/8": 1 / 8, "1/16": 1 / 16, "1/32": 1 / 32}
SEED, ASKED_SEED = 31, 32
ROWS = 16
"""Rows of a captured text, its last ones."""
CAPTURED = {2048: ((1, 0, 3), (4, 0, 1), (0, 0, 1)), 4096: ((1, 0, 2), (0, 0, 1))}
"""Per length, of each text: needles (0: held-out text), its number, and of how many."""
BUDGETS = {2048: ("1/8",), 4096: ("1/16", "1/32")}
SHARP = 0.2
"""Share of a head's attention from which a row counts as looking at its needle."""
ASKED = {2048: {4: 4, 0: 1, 1: 8}, 4096: {4: 3, 0: 1}}
"""Per length, texts by their needles."""
FIRST = 2
"""Texts of four needles, at the shortest length, about which references are asked."""
ASKED_BUDGETS = {2048: ("1/8", "1/16"), 4096: ("1/16", "1/32")}
TEXT_ROWS = 128
"""Last tokens of held-out text that are read under a selector."""

Sample = tuple[int, int, int]
"""Needles of a text (0: held-out text), its number, and of how many."""


def answer_of(tokenizer: Any, question: Question) -> list[int]:
    return encode(tokenizer, " " + question.answer)


def needle(hay: Haystack, question: Question) -> tuple[int, int]:
    """Return where the last words before the answer and the answer's first tokens stand."""
    lead = question.ids[-4:]
    start = next(i for i in range(len(hay.ids)) if hay.ids[i : i + len(lead)] == lead)
    return start, start + 2 * len(lead)


@torch.inference_mode()
def capture(reader: Reader, tokenizer: Any, folder: Path) -> dict[int, list[Path]]:
    """Write what attention saw of each text to files, and return them by length.

    A file has queries [layers, kv_heads, ROWS, heads, D], keys and values [layers, kv_heads, n, D] in half precision.
    """
    files: dict[int, list[Path]] = {}
    for length, texts in CAPTURED.items():
        for needles, i, count in texts:
            file = folder / f"{f'needles-{needles}' if needles else 'text'}-{length}-{i}.npz"
            files.setdefault(length, []).append(file)
            if file.exists():
                continue
            ids, place = windows(tokenizer, length, 1, "calibration")[0], (0, 0)
            if needles:
                hay = haystack(tokenizer, length, needles, i, count, SEED)
                asked = hay.questions[0]
                ids, place = [*hay.ids, *asked.ids, *answer_of(tokenizer, asked)[:-1]], needle(hay, asked)
            cache = reader.text(ids[:-ROWS])
            reader.record = []
            reader.rows(cache, ids[-ROWS:], None)
            q, k, v = (torch.stack(x).half().numpy() for x in zip(*reader.record, strict=True))
            reader.record = None
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(file, q=q, k=k, v=v, needle=np.array(place))
    return files


class Seen:
    """What the rows of one captured text saw."""

    def __init__(self, file: Path) -> None:
        with np.load(file) as arrays:
            q, k, v = (torch.from_numpy(arrays[name]).float().flatten(0, 1) for name in ("q", "k", "v"))
            self.needle = slice(*arrays["needle"].tolist())
        self.q, self.k, self.v = q, k, v
        n, rows = k.shape[1], q.shape[1]
        self.lengths = torch.arange(n - rows, n) + 1
        logits = torch.einsum("grhd,gnd->grhn", q, k)
        self.mass = logits.masked_fill(torch.arange(n) >= self.lengths[:, None, None], -torch.inf).softmax(-1)
        self.out = self._output(self.mass)

    def _output(self, mass: torch.Tensor) -> torch.Tensor:
        return (mass.flatten(1, 2) @ self.v).unflatten(1, mass.shape[1:3])

    def judge(self, selector: Selector, read: float) -> dict[str, Any]:
        """Return `read`, `missed` and `error`, means over rows and groups, and `found` and `sought` of the needle."""
        chosen, share = choose(selector, self.q, self.k, self.lengths, read)
        mass = self.mass * chosen.unsqueeze(2)
        kept = mass.sum(-1)
        out = self._output(mass) / kept.unsqueeze(-1)
        error = (out - self.out).flatten(2).norm(dim=-1) / self.out.flatten(2).norm(dim=-1)
        there, found = (x[..., self.needle].sum(-1) for x in (self.mass, mass))
        sharp = there > SHARP
        return {
            "read": float(share.mean()), "missed": float(1 - kept.mean()), "error": float(error.mean()),
            "worst": float((1 - kept).flatten(2).amax(-1).quantile(0.9)),
            "found": float(found[sharp].sum()), "sought": float(there[sharp].sum()),
        }  # fmt: skip


def judge(journal: Journal, files: dict[int, list[Path]]) -> list[dict[str, Any]]:
    """Return one entry per stage, selector, length and budget."""
    tried = [(stage, name, selector) for stage, found in STAGES.items() for name, selector in found().items()]
    say = said("mass")
    everything = [(length, file) for length, those in files.items() for file in those]
    for i, (length, file) in enumerate(everything):
        seen = None
        for read in BUDGETS[length]:
            for stage, _, selector in tried:
                key = f"mass/{file.name}/{read}/{selector}"
                if length in LENGTHS[stage] and journal.get(key) is None:
                    seen = seen or Seen(file)
                    journal.put(key, seen.judge(selector, SHARES[read]))
        say(i + 1, len(everything), file.name)
    entries = []
    for stage, name, selector in tried:
        for length, read in ((n, read) for n in LENGTHS[stage] for read in BUDGETS[n]):
            each = [journal.get(f"mass/{file.name}/{read}/{selector}") for file in files[length]]
            entry = {what: float(np.mean([e[what] for e in each])) for what in ("read", "missed", "error")}
            entry["needle"] = sum(e["found"] for e in each) / sum(e["sought"] for e in each)
            entries.append({"stage": stage, "selector": name, "length": length, "budget": read, **entry})
    return entries


def tell(
    reader: Reader, cache: Any, given: Sequence[int], wanted: Sequence[int], selector: Selector | None, read: float,
    dense: torch.Tensor,
) -> dict[str, Any]:  # fmt: skip
    """Feed tokens that are `given`, then those `wanted`, and say how the model foresees the latter.

    Greedy decoding does the same while it is right: an answer is right if each of its tokens is the first choice.
    """
    found = reader.rows(cache, [*given, *wanted[:-1]], selector, read)[len(given) - 1 :]
    ids = torch.tensor(wanted)
    return {
        "nll": -float(found.gather(1, ids[:, None]).sum()),
        "right": bool((found.argmax(-1) == ids).all()),
        "read": float(np.mean(reader.shares)) if selector else 1.0,
        "kl": float((dense.exp() * (dense - found)).sum(-1).mean()),
        "tokens": len(wanted),
    }


def answer(reader: Reader, tokenizer: Any, journal: Journal, length: int) -> list[dict[str, Any]]:
    """Return one entry per selector and budget: needles found, and held-out text."""
    samples = [(needles, i, count) for needles, count in ASKED[length].items() for i in range(count)]
    rows: list[tuple[str, Selector | None, str, list[Sample]]] = [("dense", None, "1", samples)]
    few = [] if length > min(ASKED) else [(4, i, ASKED[length][4]) for i in range(FIRST)]
    for names, those in ((FINALISTS, samples), (REFERENCES, few)):
        rows += [(name, s, read, those) for name, s in names.items() for read in ASKED_BUDGETS[length] if those]
    say = said(f"needles at {length:,}")

    def key(sample: Sample, selector: Selector | None, read: str) -> str:
        needles, i, count = sample
        return f"needles/{length}/{needles}/{i} of {count}/{read}/{selector}"

    for done, sample in enumerate(samples):
        wanted = [(s, read) for _, s, read, those in rows if sample in those]
        missing = [row for row in wanted if journal.get(key(sample, *row)) is None]
        if missing:
            ids, pairs = _asked(tokenizer, length, *sample)
            cache = reader.text(ids)
            dense = [reader.rows(cache, [*given, *told[:-1]], None)[len(given) - 1 :] for given, told in pairs]
            for selector, read in missing:
                each = [
                    tell(reader, cache, *pair, selector, SHARES[read], truth)
                    for pair, truth in zip(pairs, dense, strict=True)
                ]
                journal.put(key(sample, selector, read), each)
        say(done + 1, len(samples), f"{sample[0]} needles, text {sample[1]}")
    entries = []
    for name, selector, read, those in rows:
        entry: dict[str, Any] = {"selector": name, "length": length, "budget": read}
        for needles in dict.fromkeys(needles for needles, _, _ in those):
            each = [e for sample in those if sample[0] == needles for e in journal.get(key(sample, selector, read))]
            entry["read"] = float(np.mean([e["read"] for e in each]))
            nll = float(np.mean([e["nll"] / e["tokens"] for e in each]))
            entry[str(needles)] = {"nll": nll, "kl": float(np.mean([e["kl"] for e in each]))}
            if needles:
                right = sum(e["right"] for e in each)
                entry[str(needles)] |= {"right": right, "questions": len(each), "interval": wilson(right, len(each))}
        entries.append(entry)
    return entries


def _asked(
    tokenizer: Any, length: int, needles: int, i: int, count: int
) -> tuple[Sequence[int], list[tuple[Sequence[int], list[int]]]]:
    """Return the tokens of a text, and the pairs of what is fed behind it and what should follow."""
    if needles:
        hay = haystack(tokenizer, length, needles, i, count, ASKED_SEED)
        return hay.ids, [(q.ids, answer_of(tokenizer, q)) for q in hay.questions]
    window = windows(tokenizer, length, count, "calibration")[i]
    return window[:-TEXT_ROWS], [(window[-TEXT_ROWS : -TEXT_ROWS + 1], window[-TEXT_ROWS + 1 :])]


def markdown(found: dict[str, Any]) -> str:
    """Return the page."""
    lines = [about(found["run"])]
    columns = ("length", "budget", "read", "selector")
    lines += ["", "## Needles", "", *head([*columns, "four needles", "KL", "one needle", "KL", "text, KL"])]
    for e in found["needles"]:
        cells = [str(e["length"]), e["budget"], f"{e['read']:.4f}", e["selector"]]
        for needles in ("4", "1"):
            some = e.get(needles)
            cells += [f"{some['right']} of {some['questions']}", f"{some['kl']:.3f}"] if some else ["-", "-"]
        lines.append(line(*cells, f"{e['0']['kl']:.4f}" if "0" in e else "-"))
    lines += ["", "## Attention", "", *head([*columns, "missed", "error", "needle found"])]
    for e in found["mass"]:
        numbers = [f"{e[name]:.3f}" for name in ("missed", "error", "needle")]
        lines.append(
            line(str(e["length"]), e["budget"], f"{e['read']:.4f}", f"{e['stage']}: {e['selector']}", *numbers)
        )
    return "\n".join(lines) + "\n"


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--scratch", type=Path, default=Path("build/reads"))
    parser.add_argument("--only", type=int, choices=ASKED, help="ask about needles at one length, and write no page")
    options = parser.parse_args()
    try:
        model, tokenizer = load_model(options.model, dtype="float32", device="cpu")
        reader = Reader(model)
        journal = Journal(options.results / "reads_selection.partial")
        if options.only:
            answer(reader, tokenizer, journal, options.only)
            return 0
        mass = judge(journal, capture(reader, tokenizer, options.scratch))
        needles = [e for length in ASKED for e in answer(reader, tokenizer, journal, length)]
        found = {
            "run": provenance(model, seed=[SEED, ASKED_SEED], runs=1), "needles": needles, "mass": mass,
        }  # fmt: skip
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    write(options.results, "reads_selection", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
