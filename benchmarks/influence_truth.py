"""Measure how well each estimator ranks KV heads by the harm of cutting them, on the real model.

The truth is what happens to the model's answers when one group alone is cut to a quarter of the text, once with a sink
of the first keys and once with a keydiff sink. It is measured as the KL divergence from the dense model's answer
distribution, and as the loss of the given answer's margin (for answers that the dense model gets right). Beside each
estimator's ranks stands, for `fisher`, the size of its harm over the measured KL. Writes influence_truth.json and
influence_truth.md to `--results`. If it is stopped, the same command continues from `influence_truth.partial`. It takes
about 40 minutes on 2 idle cores.

    python benchmarks/influence_truth.py .model/SmolLM2-135M-Instruct
"""

import argparse
import random
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages_parts.profile import KINDS, TRUTHS
from provenance import about, provenance, write
from resumed import kept
from scipy.stats import spearmanr
from tables import claim, claimed, head, line

from moa.evaluation.journal import Journal, key
from moa.hf.fingerprint import fingerprint
from moa.hf.load import load_model
from moa.hf.logits import hidden_of, logits_of
from moa.plans.errors import MoaError
from moa.plans.patterns import PATTERNS
from moa.plans.plan import FULL, ModelInfo, Plan, Rule
from moa.plans.span import BLOCK, first_block
from moa.profiler.backward import run_backward
from moa.profiler.calibration import Sample
from moa.profiler.estimators import ESTIMATORS
from moa.profiler.recorder import recording
from moa.profiler.sources import SOURCES
from moa.runtime.applied import apply
from moa.search.spread import iqr

MEASURES = [
    ("first-order", "greedy", "nll", "first order, signed (the paper's equation)"),
    ("first-order-abs", "greedy", "nll", "first order, absolute value per entry (the paper's code)"),
    ("mass", "greedy", "nll", "lost attention mass, no gradient"),
    ("fisher", "sampled", "nll", "fisher, labels sampled from the model"),
    ("fisher", "given", "margin", "fisher, margin of the given answer"),
    ("effect", "given", "margin", "signed effect of the whole cut on the margin of the given answer"),
]
COUNTED = 1e-3
"""Groups of less than this share of the largest KL are left out of the ratio: theirs says nothing."""


def samples(tokenizer: Any, length: int, count: int, seed: int) -> list[Sample]:
    """Return fact and key-value samples in turn."""
    kinds = [SOURCES["facts"], SOURCES["pairs"]]
    return [kinds[i % 2].sample(tokenizer, length, random.Random(f"truth/{seed}/{i}"), True) for i in range(count)]


@torch.inference_mode()
def answers(model: Any, sample: Sample) -> torch.Tensor:
    """Return the log-probabilities at the answers [answers, vocabulary]."""
    hidden = hidden_of(model, torch.tensor([sample.ids]))
    return logits_of(model, hidden[torch.tensor(sample.response) - 1]).log_softmax(-1)


def margins(logits: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Return by how much each given answer is ahead of the best other [answers]."""
    label = logits.gather(1, given[:, None])
    return (label - logits.scatter(1, given[:, None], -torch.inf).amax(-1, keepdim=True))[:, 0]


class Bench:
    """The model, the texts and the cuts, one per kind of sink; what is measured is kept in the journal."""

    def __init__(self, model: Any, texts: list[Sample], cuts: dict[str, Rule], journal: Journal) -> None:
        self.model, self.texts, self.cuts, self.journal = model, texts, cuts, journal
        self.info = ModelInfo.from_config(model.config)
        self.about = {"weights": fingerprint(model), "texts": repr(texts), "cuts": repr(cuts)}
        self.dense: list[torch.Tensor] = []

    def kept(self, measure: Callable[[], Any], **what: Any) -> Any:
        """Return the journal's result, or a new one."""
        return kept(self.journal, key(**self.about, **what), measure, **what)

    def truth(self, kind: str) -> dict[str, np.ndarray]:
        """Return what each group's cut does, as a mean over a text's answers, then texts: [layers * kv_heads] each."""
        found = [
            self.kept(partial(self.harm, kind, layer, head), kind=kind, layer=layer, head=head)
            for layer in self.info.ruled_layers
            for head in range(self.info.kv_heads)
        ]
        return {name: np.array([each[name] for each in found]) for name in TRUTHS}

    def harm(self, kind: str, layer: int, head: int) -> dict[str, float]:
        """Return what one group's cut does: the KL in nats, and the fall of the margin in logits."""
        self.dense = self.dense or [answers(self.model, text) for text in self.texts]
        rules = {other: [FULL] * self.info.kv_heads for other in self.info.ruled_layers}
        rules[layer][head] = self.cuts[kind]
        with apply(self.model, Plan.from_rules(self.info, rules)):
            cut = [answers(self.model, text) for text in self.texts]
        kl, fall = [], []
        for text, p, q in zip(self.texts, self.dense, cut, strict=True):
            kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
            given = torch.tensor(text.ids)[list(text.response)]
            before = margins(p, given)
            fall.append(float(torch.where(before > 0, before - margins(q, given), 0.0).mean()))
        return {"kl": float(np.mean(kl)), "margin": float(np.mean(fall))}

    def score(self, estimator: str, labels: Any, loss: Any) -> dict[str, np.ndarray]:
        """Return an estimator's figures of these cuts, per answer, as means over texts: [layers * kv_heads] each."""
        found = [
            self.kept(
                partial(self.estimate, i, estimator, labels, loss),
                estimator=estimator,
                labels=labels,
                loss=loss,
                text=i,
            )
            for i in range(len(self.texts))
        ]
        return {kind: np.mean([each[kind] for each in found], axis=0) for kind in self.cuts}

    def estimate(self, i: int, estimator: str, labels: Any, loss: Any) -> dict[str, list[float]]:
        with recording(self.model, [rule.variant for rule in self.cuts.values()], ESTIMATORS[estimator]) as recorder:
            run_backward(self.model, self.texts[i], labels, loss, torch.Generator().manual_seed(i))
            tables = recorder.take().double().numpy()
        found = {}
        for (kind, cut), table in zip(self.cuts.items(), tables, strict=True):
            rows = np.arange(table.shape[-1])
            edges = first_block(cut.sink, cut.alpha, cut.beta256, rows)
            kept = table[..., rows, np.where(edges > cut.sink // BLOCK, edges, 0)]
            found[kind] = (kept.sum(-1).ravel() / len(self.texts[i].response)).tolist()
        return found


def rank(score: np.ndarray, truth: np.ndarray) -> float | None:
    """Return Spearman's correlation; None where all are alike, as margins are of a model that gets no answer right."""
    if np.ptp(score) == 0 or np.ptp(truth) == 0:
        return None
    return round(float(spearmanr(score, truth).statistic), 3)


def size(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the KL that `fisher` predicts over the measured one: its median over groups, and its IQR."""
    counted = truth > COUNTED * truth.max()
    ratio = (score[counted] / 2 / truth[counted]).tolist()  # a quadratic form: half of it
    return {"ratio": float(np.median(ratio)), "iqr": iqr(ratio), "groups": len(ratio)}


def claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what must hold, and what was measured."""
    paper, fisher = rows[1]["spearman"], rows[3]["spearman"]
    found = [
        claim(f"fisher, {says}: Spearman with KL at least", fisher[kind]["kl"], 0.9) for kind, says in KINDS.items()
    ]
    ahead = fisher["sink_window"]["kl"] - paper["sink_window"]["kl"]
    return [*found, claim("fisher over first-order-abs, first keys: Spearman at least", round(ahead, 3), 0.25)]


def markdown(found: dict[str, Any]) -> str:
    """Return the page."""
    columns = [f"{says}, {name}" for says in KINDS.values() for name in TRUTHS.values()]
    lines = [
        f"{found['model']}; {about(found['run'])}", "",
        f"{found['length']:,} tokens, {found['samples']} samples, {found['groups']} groups; Spearman's correlation "
        "with the truth:", "", *head(["estimator", *columns]),
    ]  # fmt: skip
    for row in found["rows"]:
        found_ranks = (row["spearman"][kind][name] for kind in KINDS for name in TRUTHS)
        lines.append(line(row["text"], *("-" if r is None else f"{r:.2f}" for r in found_ranks)))
    lines.append("")
    for kind, says in KINDS.items():
        ratio = found["size"][kind]
        lines.append(
            f"KL by `fisher` over the measured, {says}: {ratio['ratio']:.2f} (IQR {ratio['iqr']:.0%}, "
            f"{ratio['groups']} groups)  "
        )
    return "\n".join([*lines, "", *claimed(found["claims"])]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument(
        "--length", type=int, default=1024, help="tokens, at most 8192: up to there a profile's bins are blocks"
    )
    parser.add_argument("--seed", type=int, default=11, help="of the samples")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "influence_truth.partial")
        model, tokenizer = load_model(options.model, dtype="float32", device="cpu")
        texts = samples(tokenizer, options.length, options.samples, options.seed)
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    cuts = {kind: PATTERNS[kind](sink=BLOCK, alpha=options.length // 4, beta=0) for kind in KINDS}
    bench = Bench(model, texts, cuts, journal)
    scores = [bench.score(*measure) for *measure, _ in MEASURES]
    truth = {kind: bench.truth(kind) for kind in KINDS}
    rows = [
        {
            "estimator": e,
            "labels": labels,
            "loss": loss,
            "text": text,
            "spearman": {kind: {name: rank(score[kind], true) for name, true in truth[kind].items()} for kind in KINDS},
        }
        for (e, labels, loss, text), score in zip(MEASURES, scores, strict=True)
    ]
    found = {
        "run": provenance(model, seed=options.seed, runs=1), "model": bench.info.name, "length": options.length,
        "samples": options.samples, "groups": len(truth["sink_window"]["kl"]), "rows": rows,
        "size": {kind: size(scores[3][kind], truth[kind]["kl"]) for kind in KINDS}, "claims": claims(rows),
        "truth": {k: {name: [round(x, 6) for x in true.tolist()] for name, true in truth[k].items()} for k in KINDS},
    }  # fmt: skip
    write(options.results, "influence_truth", found, markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
