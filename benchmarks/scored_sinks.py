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
from torch.nn.functional import normalize, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import rotate_half

from moa.evaluate import against, windows
from moa.haystack import Haystack, haystack
from moa.load import load_model
from moa.plans.errors import MoaError
from moa.plans.plan import Plan
from moa.plans.span import BLOCK
from moa.profiler.backward import response_hidden
from moa.profiler.calibration import whole_text

PINNED = 4
"""Keys at the start that are always kept: the model parks its attention there (arXiv 2309.17453)."""

KINDS = "dense", "first keys", "unlike keys"


def unlike(k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """How unlike the mean key each key is, -1 to 1.

    Args:
        k: After RoPE, [groups, n, D].
        cos: Of RoPE's angles, [n, D].
        sin: Likewise.

    Returns:
        [groups, n].
    """
    n = k.shape[1]
    unit = normalize(k * cos - rotate_half(k) * sin, dim=-1)
    end = (torch.arange(n) // BLOCK * BLOCK + BLOCK - 1).clamp(max=n - 1)
    return -(unit * normalize(unit.cumsum(1)[:, end], dim=-1)).sum(-1)


def visible(first: Tensor, sink: int, score: Tensor) -> Tensor:
    """bool [n, n]: which keys each row of one group sees, whose sink holds those of greatest `score` [n]."""
    at = torch.arange(len(score))
    score = score.index_fill(0, at[:PINNED], torch.inf)
    seen = at // BLOCK >= first[at // BLOCK, None]
    for block, rows in enumerate(seen.split(BLOCK)):
        rows[:, score[: BLOCK * int(first[block])].topk(min(sink, len(at))).indices] = True
    return seen & (at <= at[:, None])


class Trial:
    """The attention function, and what it reads: the plan, and the kind of sink now measured."""

    def __init__(self, plan: Plan, rotary: Any) -> None:
        self.plan, self.rotary, self.kind = plan, rotary, KINDS[0]

    def attention(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """transformers' attention function for one sequence: query [1, query_heads, n, D]."""
        q, k, v = (x.float() for x in (query, key, value))
        seen = None if self.kind == "dense" else self._seen(module.layer_idx, k[0])
        if seen is not None:
            seen = seen.repeat_interleave(q.shape[1] // k.shape[1], 0)
        out = scaled_dot_product_attention(
            q, k, v, seen, is_causal=seen is None, scale=kwargs["scaling"], enable_gqa=True
        )
        return out.to(query.dtype).transpose(1, 2), None

    def _seen(self, layer: int, k: Tensor) -> Tensor:
        """bool [groups, n, n]: which keys the rows of each group see."""
        groups, n, _ = k.shape
        at = torch.arange(n)
        scores = -at.float().expand(groups, n)
        if self.kind == "unlike keys":
            cos, sin = self.rotary(k, at[None])
            scores = unlike(k, cos[0], sin[0])
        first = torch.from_numpy(self.plan.first_table(layer, -(-n // BLOCK)))
        sinks = self.plan.rules(layer)[0].tolist()
        return torch.stack([visible(*group) for group in zip(first, sinks, scores, strict=True)])


@torch.inference_mode()
def found(model: Any, tokenizer: Any, hay: Haystack) -> int:
    """Questions whose answer's tokens are the model's choice, one after the other: in one pass, as the masks need."""
    right = 0
    for question in hay.questions:
        answer = tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*hay.ids, *question.ids, *answer]])
        logits = model(ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
        right += int((logits.argmax(-1) == torch.tensor(answer)).all())
    return right


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
    trial = Trial(plan, model.base_model.rotary_emb)
    AttentionInterface.register("scored_sinks", trial.attention)
    model.set_attn_implementation("scored_sinks")
    print(
        f"{n:,} tokens, density {plan.density(n):.3f}\n\n| sink | one needle | four | perplexity | KL |\n{'|---' * 5}|"
    )
    dense: list[Tensor] = []  # last hidden states of each text
    nll = dict.fromkeys(KINDS, 0.0)
    for trial.kind in KINDS:
        kl = 0.0
        for i, text in enumerate(texts):
            with torch.inference_mode():
                hidden = response_hidden(model, whole_text(text))
                if trial.kind == "dense":
                    dense.append(hidden)
                apart, given, _ = against(model, dense[i], hidden, torch.tensor(text[1:]))
            nll[trial.kind] -= float(given.mean()) / len(texts)
            kl += float(apart.mean()) / len(texts)
        right = {
            needles: f"{sum(found(model, tokenizer, hay) for hay in hays)} of {needles * len(hays)}"
            for needles, hays in tasks.items()
        }
        perplexity = math.exp(nll[trial.kind] - nll["dense"])
        print(f"| {trial.kind} | {right[1]} | {right[4]} | {perplexity:.4f} | {kl:.4f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
