"""How well each estimator ranks KV heads by the harm of cutting them, on the real model.

Truth: KL from the dense model's answer distribution when one group alone is cut to a quarter of the text. Writes
benchmarks/results/influence_truth.json and the table in docs/influence.md. Resumable: every group's truth is appended
to a journal as soon as it is known.

    python benchmarks/influence_truth.py MODEL [--samples 6] [--length 1024]
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from moa.applied import apply
from moa.journal import Journal
from moa.load import load_model
from moa.plans.plan import FULL, ModelInfo, Plan, Rule
from moa.plans.span import first_block
from moa.profiler.calibration import SOURCES, Sample
from moa.profiler.collect import run_backward
from moa.profiler.estimators import ESTIMATORS
from moa.profiler.head import logits_of
from moa.profiler.recorder import recording

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "influence.md"
MEASURES = [
    ("first-order", "greedy", "nll", "first order, signed (the paper's equation)"),
    ("first-order-abs", "greedy", "nll", "first order, absolute value per entry (the paper's code)"),
    ("mass", "greedy", "nll", "lost attention mass, no gradient"),
    ("fisher", "sampled", "nll", "fisher, labels sampled from the model"),
    ("fisher", "given", "margin", "fisher, margin of the given answer"),
]


def samples(tokenizer: Any, length: int, count: int) -> list[Sample]:
    """Alternating fact and key-value samples."""
    kinds = [SOURCES["facts"], SOURCES["pairs"]]
    return [kinds[i % 2].sample(tokenizer, length, random.Random(f"truth/{i}"), True) for i in range(count)]


@torch.inference_mode()
def answers(model: Any, sample: Sample) -> torch.Tensor:
    """Log-probabilities at the answers [answers, vocabulary]."""
    hidden = model.base_model(torch.tensor([sample.ids]), use_cache=False).last_hidden_state[0]
    return logits_of(model, hidden[torch.tensor(sample.response) - 1]).log_softmax(-1)


def truth(model: Any, info: ModelInfo, texts: list[Sample], cut: Rule, journal: Journal) -> np.ndarray:
    """KL of each group's cut, mean over answers, nats: [layers * kv_heads]."""
    dense = [answers(model, text) for text in texts]
    for layer in info.ruled_layers:
        for head in range(info.kv_heads):
            key = f"{layer}.{head}"
            if journal.get(key) is not None:
                continue
            rules = {other: [FULL] * info.kv_heads for other in info.ruled_layers}
            rules[layer][head] = cut
            with apply(model, Plan.from_rules(info, rules)):
                kl = [
                    float((p.exp() * (p - answers(model, text))).sum(-1).mean())
                    for p, text in zip(dense, texts, strict=True)
                ]
            journal.put(key, float(np.mean(kl)))
            print(key, f"{journal.get(key):.5f}", flush=True)
    return np.array([journal.get(f"{layer}.{head}") for layer in info.ruled_layers for head in range(info.kv_heads)])


def score(model: Any, texts: list[Sample], cut: Rule, estimator: str, labels: Any, loss: Any) -> np.ndarray:
    """What one estimator says of the same cut: [layers * kv_heads]."""
    total: Any = 0
    for i, text in enumerate(texts):
        with recording(model, ESTIMATORS[estimator], (cut.sink,)) as recorder:
            run_backward(model, text, labels, loss, torch.Generator().manual_seed(i))
            table = recorder.take().double().numpy()[0]
        rows = np.arange(table.shape[-1])
        edges = first_block(cut.sink, cut.alpha, cut.beta256, rows)
        total += table[..., rows, np.where(edges > cut.sink // 64, edges, 0)].sum(-1)
    return np.asarray(total).ravel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--samples", type=int, default=6)
    parser.add_argument("--length", type=int, default=1024)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, dtype="float32")
    info = ModelInfo.from_config(model.config)
    texts = samples(tokenizer, options.length, options.samples)
    cut = Rule(sink=64, alpha=options.length // 4, beta=0)
    partial = HERE / "results" / f"influence_truth.{options.length}.{options.samples}.partial"
    real = truth(model, info, texts, cut, Journal(partial))
    rows = []
    for estimator, labels, loss, label in MEASURES:
        ranked = float(spearmanr(score(model, texts, cut, estimator, labels, loss), real).statistic)
        rows.append(
            {"estimator": estimator, "labels": labels, "loss": loss, "spearman": round(ranked, 3), "text": label}
        )
        print(label, f"{ranked:.3f}", flush=True)
    result = {
        "model": info.name, "length": options.length, "samples": options.samples, "dtype": "float32",
        "torch": torch.__version__, "rows": rows, "truth": [round(float(x), 6) for x in real],
    }  # fmt: skip
    (HERE / "results" / "influence_truth.json").write_text(json.dumps(result, indent=1) + "\n")
    table = ["| estimator | Spearman with the truth |", "|---|---|"]
    table += [f"| {row['text']} | {row['spearman']:.2f} |" for row in rows]
    head, _, rest = DOCUMENT.read_text().partition("<!-- truth:begin -->")
    tail = rest.partition("<!-- truth:end -->")[2]
    note = f"{info.name}, {options.length} tokens, {options.samples} samples, {len(real)} groups, float32."
    block = "\n".join([note, "", *table])
    DOCUMENT.write_text(f"{head}<!-- truth:begin -->\n{block}\n<!-- truth:end -->{tail}")
    partial.unlink()


if __name__ == "__main__":
    main()
