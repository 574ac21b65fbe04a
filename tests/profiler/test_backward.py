"""Gradients of a sample's loss."""

from typing import Any

import pytest
import torch

from moa.hf.logits import HEAD_CHUNK
from moa.plans.patterns import KeyDiffWindow, Rule
from moa.plans.plan import Plan
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.recorder import recording
from moa.runtime.applied import apply


@pytest.mark.parametrize(
    ("labels", "loss"), [("given", "nll"), ("given", "margin"), ("greedy", "margin"), ("given", "kl")]
)
def test_gradient_in_chunks_is_that_of_the_whole_loss(model: Any, labels: Any, loss: Any) -> None:
    sample = whole_text([i * 7 % 200 for i in range(HEAD_CHUNK + 70)])
    ids = torch.tensor([sample.ids])
    model.double()
    for layer in model.model.layers:
        layer.self_attn.scaling /= 2  # not that of the head size
    grads = []
    hook = model.model.layers[0].register_full_backward_hook(lambda _m, _i, out: grads.append(out[0]))
    other = torch.randn(len(sample.response), model.config.hidden_size, dtype=torch.float64)
    with recording(model, [("sink_window", 64)]):
        run_backward(model, sample, labels, loss, torch.Generator(), other if loss == "kl" else None)
    model.get_input_embeddings().weight.requires_grad_(False)
    out = model(inputs_embeds=model.get_input_embeddings()(ids).requires_grad_()).logits[0, :-1].float()
    label = ids[0, 1:, None] if labels == "given" else out.argmax(-1, keepdim=True)
    wanted = out.gather(1, label)
    if loss == "kl":
        p = model.lm_head(other).float().softmax(-1)
        lost = p * (p.log() - out.log_softmax(-1))
    elif loss == "nll":
        lost = out.logsumexp(-1, keepdim=True) - wanted
    else:  # what the model gets wrong does not count
        lost = (out.scatter(1, label, -torch.inf).amax(-1, keepdim=True) - wanted).clamp(max=0)
        assert (labels == "greedy") == bool((lost < 0).all())
    lost.sum().backward()
    hook.remove()
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Rule, KeyDiffWindow])
def test_gradients_under_a_plan_are_those_of_the_runtime(model: Any, kind: type[Rule]) -> None:
    """A small step along the gradient changes the loss of the model under the plan by what the gradient says."""
    plan = Plan.from_rules(
        model, {0: [kind(alpha=128, beta=0), Rule(alpha=192, beta=0)]}, defaults=kind(alpha=128, beta=0)
    )
    sample = whole_text([i * 7 % 200 for i in range(320)])
    model.double()
    embeddings: list[torch.Tensor] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: embeddings.append(out))
    with recording(model, [("sink_window", 64)], plan=plan):
        run_backward(model, sample, "given", "nll", torch.Generator())
    hook.remove()
    step = torch.zeros(320, embeddings[0].shape[-1], dtype=torch.float64)
    step[:100] = torch.randn(100, step.shape[-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(scale: float) -> float:
        shift = model.get_input_embeddings().register_forward_hook(lambda _m, _i, out: out + scale * step)
        with torch.no_grad(), apply(model, plan):
            logits = model(torch.tensor([sample.ids]), use_cache=False).logits[0, :-1]
        shift.remove()
        return float(torch.nn.functional.cross_entropy(logits, torch.tensor(sample.ids[1:]), reduction="sum"))

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert embeddings[-1].grad is not None
    assert float((embeddings[-1].grad[0] * step).sum()) == pytest.approx(slope, rel=1e-3)  # norms are float32
    model.float()
