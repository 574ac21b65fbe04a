"""A trial, no option of moa: slots of the sink that hold the keys most unlike the others, instead of the first keys.

A plan's window and the size of its sink stay as they are, so memory and density do too. What changes is which keys lie
in the sink of a group that is not whole: the first four of the text, and of all that left the window those of least
cosine to the mean key (before RoPE; the mean is over the text up to the end of the key's own block). A key's score
never changes, so a key once dropped is never wanted again, as for windows. Masks are dense: this measures quality only.

    python benchmarks/scored_sinks.py .model/SmolLM2-135M-Instruct smollm2-135m-instruct-0.25 --length 1024
"""

import argparse
import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AttentionInterface

from moa.evaluate import windows
from moa.haystack import Haystack, haystack
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.span import BLOCK

PINNED = 4
"""Keys at the start that are always kept: the model parks its attention there (arXiv 2309.17453)."""

KINDS = "dense", "first keys", "unlike keys"


def unlike(k: Tensor, theta: float) -> Tensor:
    """How unlike the mean key each key is, -1 to 1: k [groups, n, D] after RoPE, result [groups, n]."""
    n, half = k.shape[1], k.shape[2] // 2
    angle = torch.arange(n)[:, None] * theta ** (-torch.arange(half) / half)
    a, b = k[..., :half], k[..., half:]
    plain = torch.cat([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin()], -1)
    unit = normalize(plain, dim=-1)
    end = (torch.arange(n) // BLOCK * BLOCK + BLOCK - 1).clamp(max=n - 1)
    return -(unit * normalize(unit.cumsum(1)[:, end], dim=-1)).sum(-1)


def visible(first: Tensor, sink: int, score: Tensor | None, n: int) -> Tensor:
    """bool [n, n]: which keys each row of one group sees; `score` [n], or None for the first keys of the text."""
    at = torch.arange(n)
    seen = at // BLOCK >= first[at // BLOCK, None]
    for block in range(-(-n // BLOCK)):
        dropped = BLOCK * int(first[block])  # keys that have left the window, with those of the sink
        kept = at[:sink]
        if score is not None and dropped > sink:
            kept = score[:dropped].index_fill(0, at[:PINNED], torch.inf).topk(sink).indices
        seen[BLOCK * block : BLOCK * (block + 1), kept] = True
    return seen & (at <= at[:, None])


class Trial:
    """The attention function, and what it reads: the plan, and the kind of sink now measured."""

    def __init__(self, plan: Plan, theta: float) -> None:
        self.plan, self.theta, self.kind = plan, theta, KINDS[0]

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """transformers' attention function for one sequence: query [1, query_heads, n, D]."""
        q, k, v = (x[0].float() for x in (query, key, value))
        n, groups, layer = q.shape[1], len(k), module.layer_idx
        q = q.unflatten(0, (groups, -1))
        at = torch.arange(n)
        seen = (at <= at[:, None]).expand(groups, n, n)
        if self.kind != "dense":
            first = torch.from_numpy(self.plan.first_table(layer, -(-n // BLOCK)))
            sinks = self.plan.rules(layer)[0].tolist()
            scores = unlike(k, self.theta) if self.kind == "unlike keys" else [None] * groups
            seen = torch.stack([visible(first[g], sinks[g], scores[g], n) for g in range(groups)])
        weights = kwargs["scaling"] * torch.einsum("ghrd,gkd->ghrk", q, k)
        weights = weights.masked_fill_(~seen[:, None], -torch.inf).softmax(-1)
        out = torch.einsum("ghrk,gkd->ghrd", weights, v).flatten(0, 1)
        return out.to(query.dtype).transpose(0, 1)[None], None


@torch.inference_mode()
def found(model: Any, tokenizer: Any, hay: Haystack) -> int:
    """Questions whose answer's tokens are the model's choice, one after the other."""
    right = 0
    for question in hay.questions:
        answer = tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*hay.ids, *question.ids, *answer]])
        logits = model(ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
        right += int((logits.argmax(-1) == torch.tensor(answer)).all())
    return right


@torch.inference_mode()
def log_probabilities(model: Any, window: list[int]) -> Tensor:
    """Of the next token at every place but the last: [n - 1, vocabulary]."""
    return model(torch.tensor([window]), use_cache=False).logits[0, :-1].float().log_softmax(-1)  # type: ignore[no-any-return]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("plan")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--single", type=int, default=32, help="contexts with one needle")
    parser.add_argument("--four", type=int, default=8, help="contexts with four needles")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    n = options.length
    try:
        plan = Plan.load(options.plan)
        model, tokenizer = load_model(options.model, dtype=options.dtype)
        plan.check(model)
        tasks = {
            needles: [haystack(tokenizer, n, needles, i, count, options.seed) for i in range(count)]
            for needles, count in ((1, options.single), (4, options.four))
        }
        texts = windows(tokenizer, n, options.windows)
    except MoaError as error:
        print("error:", error, file=sys.stderr)
        return 2
    trial = Trial(plan, model.config.rope_parameters["rope_theta"])
    AttentionInterface.register("scored_sinks", trial.attention)
    model.set_attn_implementation("scored_sinks")
    dense = [log_probabilities(model, text) for text in texts]
    print(
        f"{n:,} tokens, density {plan.density(n):.3f}\n\n| sink | one needle | four | perplexity | KL |\n{'|---' * 5}|"
    )
    for trial.kind in KINDS:
        lost, kl = 0.0, 0.0
        for text, p in zip(texts, dense, strict=True):
            q, given = log_probabilities(model, text), torch.tensor(text)[1:, None]
            lost += float((p - q).gather(1, given).mean()) / len(texts)
            kl += float((p.exp() * (p - q)).sum(-1).mean()) / len(texts)
        right = {
            needles: f"{sum(found(model, tokenizer, hay) for hay in hays)} of {needles * len(hays)}"
            for needles, hays in tasks.items()
        }
        print(f"| {trial.kind} | {right[1]} | {right[4]} | {math.exp(lost):.4f} | {kl:.4f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
