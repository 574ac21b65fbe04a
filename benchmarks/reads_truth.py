"""Measure how well a profile's figures of reads rank KV heads by the harm of reading little, on the real model.

The truth is what happens to the model's answers when one group alone reads a share of all bytes, while everything is
kept: what stands before an answer is read whole, and the rows that predict its tokens read little, as in decoding. Each
text's last answers count, and the profile's figures are of their rows alone. As in influence_truth.py, harm is the KL
divergence from the dense model's answers, and the loss of the given answer's margin (for answers that the dense model
gets right). Writes reads_truth.json and reads_truth.md to `--results`. If it is stopped, the same command continues
from `reads_truth.partial`. It takes half an hour on one core.

    python benchmarks/reads_truth.py .model/SmolLM2-135M-Instruct
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from influence_truth import TRUTHS, margins, rank, samples, size
from provenance import about, provenance, said, write
from resumed import kept
from tables import claim, claimed, head, line
from transformers import DynamicCache

from moa.evaluation.journal import Journal, key
from moa.hf.fingerprint import fingerprint
from moa.hf.load import load_model
from moa.hf.logits import hidden_of, logits_of
from moa.plans.errors import MoaError
from moa.plans.plan import FULL, ModelInfo, Plan
from moa.plans.reading import READ_STEPS, SHORT
from moa.plans.span import BLOCK
from moa.profiler.backward import run_backward
from moa.profiler.calibration import Sample
from moa.profiler.estimators import effect, fisher
from moa.profiler.reads import SHARES, Effects
from moa.profiler.recorder import recording
from moa.runtime.applied import apply

MEASURES = {"fisher": (fisher, "sampled", "nll"), "effect": (effect, "given", "margin")}
"""Estimator, labels and loss, as `moa profile` takes them for text and for tasks."""
READ = {1024: (64, 32), 4096: (16, 8)}
"""Shares of all bytes in 1/256, by length: those that leave pages to choose among."""
ANSWERS = 3
"""How many of a text's answers count: the last ones."""
VARIANT = "sink_window", BLOCK
RANK = 0.85
"""Aim: the least correlation of `fisher` with the KL."""


def spans(response: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the positions of each answer, in order."""
    found: list[list[int]] = []
    for i in response:
        if found and i == found[-1][-1] + 1:
            found[-1].append(i)
        else:
            found.append([i])
    return [tuple(span) for span in found]


def ended(sample: Sample) -> Sample:
    """Return a sample whose answers are its last few alone."""
    return dataclasses.replace(sample, response=tuple(i for span in spans(sample.response)[-ANSWERS:] for i in span))


class Bench:
    """The model and the texts of one length; what is measured is kept in the journal."""

    def __init__(self, model: Any, found: list[Sample], journal: Journal) -> None:
        self.model, self.samples, self.journal = model, found, journal
        self.info = ModelInfo.from_config(model.config)
        self.groups = [(layer, group) for layer in self.info.ruled_layers for group in range(self.info.kv_heads)]
        self.about = {"weights": fingerprint(model), "texts": repr(found)}

    @torch.inference_mode()
    def answer(self, sample: Sample, span: tuple[int, ...], cache: DynamicCache) -> torch.Tensor:
        """Return the log-probabilities of an answer [tokens, vocabulary], behind a cache that is left as it was."""
        begin = cache.get_seq_length()
        calls = torch.tensor([sample.ids[begin : span[-1]]]).split(SHORT, 1)
        hidden = torch.cat([hidden_of(self.model, call, cache) for call in calls])
        cache.crop(begin - cache.get_seq_length())
        return logits_of(self.model, hidden).log_softmax(-1)

    def truth(self, i: int, share: int) -> dict[str, list[float]]:
        """Return what each group's reading does to the answers of a text: [layers * kv_heads] each."""
        return self.kept(partial(self.harm, self.samples[i], share), text=i, share=share)  # type: ignore[no-any-return]

    def harm(self, sample: Sample, share: int) -> dict[str, list[float]]:
        cache = DynamicCache(config=self.model.config)
        with torch.inference_mode():
            hidden_of(self.model, torch.tensor([sample.ids]), cache)
        little = FULL.reading(share)
        kl, fall = [], []
        for span in reversed(spans(sample.response)):
            cache.crop(span[0] - 1 - cache.get_seq_length())
            dense, given = self.answer(sample, span, cache), torch.tensor(sample.ids)[list(span)]
            before = margins(dense, given)
            for layer, group in self.groups:
                rules = [little if j == group else FULL for j in range(self.info.kv_heads)]
                with apply(self.model, Plan.from_rules(self.info, {layer: rules}, defaults=FULL)):
                    cut = self.answer(sample, span, cache)
                kl.append((dense.exp() * (dense - cut)).sum(-1))
                fall.append(torch.where(before > 0, before - margins(cut, given), 0.0))
        return {"kl": self.means(kl), "margin": self.means(fall)}

    def means(self, found: list[torch.Tensor]) -> list[float]:
        """Return the mean over tokens of every group's figures, of which each answer has one list after another."""
        count = len(self.groups)
        return [float(torch.cat(found[i::count]).mean()) for i in range(count)]

    def estimate(self, i: int, measure: str) -> list[list[float]]:
        """Return the profile's figures of a text by share, per row measured: [shares, layers * kv_heads]."""
        return self.kept(partial(self.figures, i, measure), text=i, measure=measure)  # type: ignore[no-any-return]

    def figures(self, i: int, measure: str) -> list[list[float]]:
        estimator, labels, loss = MEASURES[measure]
        effects = Effects(self.samples[i], [VARIANT])
        with recording(self.model, [VARIANT], estimator) as recorder:
            recorder.pulled = effects
            run_backward(self.model, self.samples[i], labels, loss, torch.Generator().manual_seed(i))
        table = effects.table(squared=estimator is fisher)[0] / effects.rows
        found: list[list[float]] = table.reshape(len(SHARES), -1).tolist()
        return found

    def kept(self, measure: Callable[[], Any], /, **what: Any) -> Any:
        """Return the journal's result, or a new one."""
        return kept(self.journal, key(**self.about, **what), measure, **what)


def measured(bench: Bench, length: int, progress: Any) -> list[dict[str, Any]]:
    """Return a row per share: both truths, and the correlation of each estimator with them."""
    texts, rows = range(len(bench.samples)), []
    steps = len(texts) * (len(MEASURES) + len(READ[length]))
    done = iter(range(1, steps + 1))
    scores = {}
    for name in MEASURES:
        each = []
        for i in texts:
            each.append(bench.estimate(i, name))
            progress(next(done), steps, f"{length:,} tokens, {name}")
        scores[name] = np.mean(each, axis=0)
    for share in READ[length]:
        each = []
        for i in texts:
            each.append(bench.truth(i, share))
            progress(next(done), steps, f"{length:,} tokens, {share}/{READ_STEPS} read")
        truth = {name: np.mean([one[name] for one in each], axis=0) for name in TRUTHS}
        at = {name: score[SHARES.index(share)] for name, score in scores.items()}
        rows.append({
            "length": length, "share": share / READ_STEPS,
            "spearman": {name: {of: rank(at[name], true) for of, true in truth.items()} for name in at},
            "size": size(at["fisher"], truth["kl"]),
            "truth": {name: [round(x, 7) for x in true.tolist()] for name, true in truth.items()},
        })  # fmt: skip
    return rows


def page(found: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        about(found["run"]), "",
        f"{found['samples']} samples per length, {found['groups']} groups; Spearman's correlation with the truth, and "
        "the KL by `fisher` over the measured one (median over groups, IQR):", "",
        *head(["tokens", "read", *(f"{name}, {of}" for name in MEASURES for of in TRUTHS.values()), "size"]),
    ]  # fmt: skip
    for row in found["rows"]:
        ranks = (row["spearman"][name][of] for name in MEASURES for of in TRUTHS)
        ratio = f"{row['size']['ratio']:.2f} ({row['size']['iqr']:.0%})"
        shown = ("-" if r is None else f"{r:.2f}" for r in ranks)
        lines.append(line(f"{row['length']:,}", f"1/{round(1 / row['share'])}", *shown, ratio))
    return "\n".join([*lines, "", *claimed(found["claims"])]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(READ), choices=list(READ))
    parser.add_argument("--seed", type=int, default=41, help="of the samples")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = []
    try:
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "reads_truth.partial")
        model, tokenizer = load_model(options.model, dtype="float32", device="cpu")
        for length in options.lengths:
            texts = samples(tokenizer, length, options.samples, options.seed)
            bench = Bench(model, [ended(text) for text in texts], journal)
            rows += measured(bench, length, said("reads"))
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    claims = [
        claim(f"fisher, {row['length']:,} tokens, 1/{round(1 / row['share'])} read: Spearman with KL at least",
              row["spearman"]["fisher"]["kl"], RANK)
        for row in rows
    ]  # fmt: skip
    found = {
        "run": provenance(model, seed=options.seed, runs=1), "samples": options.samples,
        "groups": len(rows[0]["truth"]["kl"]), "rows": rows, "claims": claims,
    }  # fmt: skip
    write(options.results, "reads_truth", found, page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
