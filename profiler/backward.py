"""Run the backward pass of one sample, whose gradients the recorder turns into a table: losses and labels."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moa.hf.logits import HEAD_CHUNK, hidden_of, logits_of
from moa.profiler.calibration import Labels, Loss, Sample
from moa.profiler.recorder import Recorder


def response_hidden(model: PreTrainedModel, sample: Sample) -> Tensor:
    """Return the last hidden states [response tokens, d] from which the sample's response is predicted."""
    ids = torch.tensor([sample.ids], device=model.device)
    hidden = hidden_of(model, ids)
    return hidden[torch.tensor(sample.response, device=hidden.device) - 1]


def dense_hidden(model: PreTrainedModel, sample: Sample, recorder: Recorder) -> Tensor:
    """Return the `response_hidden` of the dense model, whatever plan the recording runs under."""
    with recorder.dense(), torch.no_grad():
        return response_hidden(model, sample)


def run_backward(
    model: PreTrainedModel, sample: Sample, labels: Labels, loss: Loss, generator: torch.Generator,
    dense: Tensor | None = None,
) -> None:  # fmt: skip
    """Run the backward pass of the loss summed over the sample's response tokens; logits are made chunk by chunk.

    Args:
        model: A model within `recording`.
        sample: The sequence.
        labels: `sampled` draws each label from the model's own distribution, `greedy` takes its argmax, `given` the
            text's own token.
        loss: `nll` is -log p(label). `margin` is the best other logit minus the label's, over the tokens that the model
            gets right: those it gets wrong do not show where it finds what it knows. `kl` is the divergence from the
            dense model's distribution, and takes no labels.
        generator: Random state of sampled labels, on the CPU.
        dense: The dense model's `response_hidden`, for the loss `kl`.
    """
    hidden = response_hidden(model, sample)
    given = torch.tensor(sample.ids, device=hidden.device)[list(sample.response)]
    cut = hidden.detach().requires_grad_(True)
    for i in range(0, len(cut), HEAD_CHUNK):
        at = slice(i, i + HEAD_CHUNK)
        logits = logits_of(model, cut[at])
        if loss == "kl":
            assert dense is not None
            with torch.no_grad():
                wanted = logits_of(model, dense[at]).log_softmax(-1)
            nn.functional.kl_div(logits.log_softmax(-1), wanted, log_target=True, reduction="sum").backward()
            continue
        label = _label(logits.detach(), given[at].to(logits.device), labels, generator)[:, None]
        wanted = logits.gather(1, label)
        if loss == "nll":
            lost = logits.logsumexp(-1, keepdim=True) - wanted
        else:
            lost = logits.scatter(1, label, -torch.inf).amax(-1, keepdim=True) - wanted
            lost = lost[lost < 0]
        lost.sum().backward()
    hidden.backward(cut.grad)


def _label(logits: Tensor, given: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    """Return the label of each row [rows]."""
    if labels == "given":
        return given
    if labels == "greedy":
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
