"""How well each estimator ranks KV heads by the harm of cutting them, on the real model.

Truth: KL from the dense model's answer distribution when one group alone is cut to a quarter of the text. Writes
influence_truth.json to `--results`. Stopped at any moment, the same command goes on from `influence_truth.partial`.
About 25 minutes on 2 idle cores.

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
from scipy.stats import spearmanr

from moa.applied import apply
from moa.evaluation.journal import Journal, key, replace_json
from moa.hf.logits import hidden_of, logits_of
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import FULL, ModelInfo, Plan, Rule
from moa.plans.replace import replace_json
from moa.plans.span import BLOCK, first_block
from moa.profiler.backward import run_backward
from moa.profiler.calibration import SOURCES, Sample
from moa.profiler.estimators import ESTIMATORS
from moa.profiler.recorder import recording

HERE = Path(__file__).parent
MEASURES = [
    ("first-order", "greedy", "nll", "first order, signed (the paper's equation)"),
    ("first-order-abs", "greedy", "nll", "first order, absolute value per entry (the paper's code)"),
    ("mass", "greedy", "nll", "lost attention mass, no gradient"),
    ("fisher", "sampled", "nll", "fisher, labels sampled from the model"),
    ("fisher", "given", "margin", "fisher, margin of the given answer"),
    ("effect", "given", "margin", "signed effect of the whole cut on the margin of the given answer"),
]


def samples(tokenizer: Any, length: int, count: int) -> list[Sample]:
    """Alternating fact and key-value samples."""
    kinds = [SOURCES["facts"], SOURCES["pairs"]]
    return [kinds[i % 2].sample(tokenizer, length, random.Random(f"truth/{i}"), True) for i in range(count)]


@torch.inference_mode()
def answers(model: Any, sample: Sample) -> torch.Tensor:
    """Log-probabilities at the answers [answers, vocabulary]."""
    hidden = hidden_of(model, torch.tensor([sample.ids]))
    return logits_of(model, hidden[torch.tensor(sample.response) - 1]).log_softmax(-1)


class Bench:
    """The model, the texts and the cut; what is measured is kept in the journal."""

    def __init__(self, model: Any, texts: list[Sample], cut: Rule, journal: Journal) -> None:
        self.model, self.texts, self.cut, self.journal = model, texts, cut, journal
        self.info = ModelInfo.from_config(model.config)
        self.about = {"model": self.info.model_dump(), "texts": repr(texts), "cut": repr(cut)}
        self.dense: list[torch.Tensor] = []

    def kept(self, measure: Callable[[], Any], **what: Any) -> Any:
        """The journal's result, or a new one."""
        name = key(**self.about, **what)
        if self.journal.get(name) is None:
            self.journal.put(name, measure(), **what)
            print(*what.values(), flush=True)
        return self.journal.get(name)

    def truth(self) -> np.ndarray:
        """KL of each group's cut, mean over a text's answers, then over texts, nats: [layers * kv_heads]."""
        return np.array(
            [
                self.kept(partial(self.divergence, layer, head), layer=layer, head=head)
                for layer in self.info.ruled_layers
                for head in range(self.info.kv_heads)
            ]
        )

    def divergence(self, layer: int, head: int) -> float:
        self.dense = self.dense or [answers(self.model, text) for text in self.texts]
        rules = {other: [FULL] * self.info.kv_heads for other in self.info.ruled_layers}
        rules[layer][head] = self.cut
        with apply(self.model, Plan.from_rules(self.info, rules)):
            cut = [answers(self.model, text) for text in self.texts]
        kl = [float((p.exp() * (p - q)).sum(-1).mean()) for p, q in zip(self.dense, cut, strict=True)]
        return float(np.mean(kl))

    def score(self, estimator: str, labels: Any, loss: Any) -> np.ndarray:
        """What one estimator says of the same cut, per answer, mean over texts: [layers * kv_heads]."""
        return np.mean(
            [
                self.kept(
                    partial(self.estimate, i, estimator, labels, loss),
                    estimator=estimator, labels=labels, loss=loss, text=i,
                )
                for i in range(len(self.texts))
            ],
            axis=0,
        )  # fmt: skip

    def estimate(self, i: int, estimator: str, labels: Any, loss: Any) -> list[float]:
        with recording(self.model, (self.cut.sink,), ESTIMATORS[estimator]) as recorder:
            run_backward(self.model, self.texts[i], labels, loss, torch.Generator().manual_seed(i))
            table = recorder.take().double().numpy()[0]
        rows = np.arange(table.shape[-1])
        edges = first_block(self.cut.sink, self.cut.alpha, self.cut.beta256, rows)
        kept = table[..., rows, np.where(edges > self.cut.sink // BLOCK, edges, 0)]
        harm: list[float] = (kept.sum(-1).ravel() / len(self.texts[i].response)).tolist()
        return harm


def claims(found: dict[str, float]) -> list[dict[str, Any]]:
    """What must hold, and what was measured."""
    fisher = round(found[MEASURES[3][3]], 3)
    ahead = round(fisher - found[MEASURES[1][3]], 3)
    return [
        {"claim": "fisher, Spearman at least", "measured": fisher, "bound": 0.9, "holds": fisher >= 0.9},
        {"claim": "fisher over first-order-abs, at least", "measured": ahead, "bound": 0.25, "holds": ahead >= 0.25},
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument(
        "--length", type=int, default=1024, help="tokens, at most 8192: up to there a profile's bins are blocks"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    try:
        options.results.mkdir(parents=True, exist_ok=True)
        journal = Journal(options.results / "influence_truth.partial")
        model, tokenizer = load_model(options.model, dtype="float32", device="cpu")
        texts = samples(tokenizer, options.length, options.samples)
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    bench = Bench(model, texts, Rule(sink=BLOCK, alpha=options.length // 4, beta=0), journal)
    truth = bench.truth()
    found = {text: float(spearmanr(bench.score(*measure), truth).statistic) for *measure, text in MEASURES}
    held = claims(found)
    about = {
        "model": bench.info.name, "length": options.length, "samples": options.samples, "dtype": "float32",
        "torch": torch.__version__,
    }  # fmt: skip
    rows = [
        {"estimator": e, "labels": labels, "loss": loss, "text": text, "spearman": round(found[text], 3)}
        for e, labels, loss, text in MEASURES
    ]
    figures = [round(float(kl), 6) for kl in truth]
    replace_json(options.results / "influence_truth.json", {**about, "rows": rows, "claims": held, "truth": figures})
    print(*(f"{row['text']}: {row['spearman']:.2f}" for row in rows), *held, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
