"""Stage `crowd`: more requests than fit at once, all there from the beginning."""

from typing import Any

import torch
from serving_parts import engine
from serving_parts.sizes import TOLERANCE, Sizes
from serving_parts.texts import texts

from moa.bench import timing

CPU = torch.device("cpu")


def crowd(model: str, plan: str | None, sizes: Sizes, new: int, at_once: int, chunk: int) -> dict[str, Any]:
    """Return the seconds that the answers took, steps that read prompts and steps that only generate apart.

    Args:
        model: The model's folder.
        plan: The plan's file; None is the dense model.
        sizes: The number of requests and their length.
        new: Tokens of each answer.
        at_once: Most requests that run at once (--max-num-seqs).
        chunk: Most tokens of a step (--max-num-batched-tokens).
    """
    llm = engine.start(model, plan, sizes, max_num_seqs=at_once, max_num_batched_tokens=chunk)
    prompts = texts(llm.get_tokenizer(), [sizes.length] * sizes.requests)
    engine.answers(llm, [prompts[0][:300]], 2)  # warm up
    engine.add(llm, prompts, new)
    clock = Clock(llm)
    done = engine.finish(llm, clock.step)
    outputs = {i: list(done[str(i)].outputs[0].token_ids) for i in range(len(prompts)) if str(i) in done}
    tokens = sum(map(len, outputs.values()))
    found = {
        "tokens per second": tokens / sum(clock.seconds.values()),
        "seconds": clock.seconds, "tokens": clock.tokens,
        "most at once": clock.most,
        "preemptions": sum(m.value for m in llm.get_metrics() if m.name == "vllm:num_preemptions"),
        "lost": sum(len(outputs.get(i, ())) != new for i in range(len(prompts))),
    }  # fmt: skip
    if plan is not None:
        alone = [unlike(llm, prompts[i], answer) for i, answer in outputs.items()]
        found["changed"] = sum(gap > TOLERANCE for gap in alone)
        found["largest gap of a token to the best"] = max(alone, default=0.0)
    return found


class Clock:
    """Steps of an engine with the time of each.

    Attributes:
        seconds: Of steps that read prompts, among others, and of those that only generate.
        tokens: That were computed in each kind of step.
        most: The most requests in one step.
    """

    def __init__(self, llm: Any) -> None:
        self._llm, self._schedule = llm, engine.scheduler(llm).schedule
        self.seconds, self.tokens, self.most = {"prefill": 0.0, "decode": 0.0}, {"prefill": 0, "decode": 0}, 0
        engine.scheduler(llm).schedule = self._noted

    def _noted(self, *args: Any, **kwargs: Any) -> Any:
        found = self._schedule(*args, **kwargs)
        self._scheduled = found.num_scheduled_tokens
        return found

    def step(self) -> Any:
        outputs: list[Any] = []
        self._scheduled: dict[str, int] = {}
        took = timing.timed(lambda: outputs.extend(self._llm.llm_engine.step()), CPU)
        kind = "prefill" if max(self._scheduled.values(), default=1) > 1 else "decode"
        self.seconds[kind] += took
        self.tokens[kind] += sum(self._scheduled.values())
        self.most = max(self.most, len(self._scheduled))
        return outputs


def unlike(llm: Any, prompt: list[int], answer: list[int]) -> float:
    """Return how much likelier than a token of the answer another one was at most, when the text is read alone."""
    engine.add(llm, [prompt + answer], 1, prompt_logprobs=1)
    given = engine.finish(llm)["0"].prompt_logprobs[len(prompt) :]
    pairs = zip(given, answer, strict=True)
    return max(max(p.logprob for p in of.values()) - of[token].logprob for of, token in pairs)
