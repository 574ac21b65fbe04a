"""The harm of cuts in models whose layers are of several kinds, against a direct computation."""

from typing import Any

import pytest
import torch
from hybrids import FAMILIES, VOCABULARY, eager, layers_of, make, softmax
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from moa.plans.model import ModelInfo
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.estimate import peak_bytes
from moa.profiler.estimators import effect, fisher
from moa.profiler.recorder import recording

N, SINK = 230, 64
"""Tokens, the last block unfinished."""


class Direct:
    """Attention of the whole text at once, from which each row may go towards that of a cut; a context manager.

    Attributes:
        steps: How far each row goes, by layer and first block that is kept: float64 [blocks, kv_heads, N], all 0. The
            gradient of the loss at a step is the first-order effect of that row's cut.
    """

    def __init__(self, model: Any) -> None:
        self.model, info, self.layers = model, ModelInfo.of(model), layers_of(model)
        self.sources = info.sources
        shape = -(-N // 64), info.kv_heads, N
        self.steps = {i: torch.zeros(shape, dtype=torch.float64, requires_grad=True) for i in info.ruled_layers}

    def __enter__(self) -> "Direct":
        AttentionInterface.register("direct", self._attend)
        AttentionMaskInterface.register("direct", sdpa_mask)
        self._before = self.model.config._attn_implementation
        self.model.set_attn_implementation("direct")
        return self

    def __exit__(self, *_: object) -> None:
        self.model.set_attn_implementation(self._before)

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any) -> tuple[Tensor, None]:
        heads = q.shape[1] // k.shape[1]
        source = self.sources[self.layers[module]]
        if source not in self.steps and ("s_aux" in kwargs or "softcap" in kwargs):
            return eager(module, q, k, v, mask, **kwargs)
        k, v = (x.repeat_interleave(heads, 1) for x in (k, v))
        i, j = torch.arange(N)[:, None], torch.arange(N)
        kwargs["scaling"] = kwargs.get("scaling") or q.shape[-1] ** -0.5
        causal = (j <= i) if mask is None else mask
        out = softmax(q, k, causal, **kwargs) @ v
        if source in self.steps:
            whole = out
            for block, step in enumerate(self.steps[source]):
                kept = causal & ((j < SINK) | (j >= 64 * block))
                cut = softmax(q, k, kept, **kwargs) @ v
                out = out + step.repeat_interleave(heads, 0)[None, :, :, None] * (cut - whole)
        return out.transpose(1, 2), None


@pytest.mark.parametrize("family", FAMILIES)
def test_harm_is_what_a_direct_computation_gives(family: str) -> None:
    model = make(family)
    ids = torch.randint(3, VOCABULARY, (1, N), generator=torch.Generator().manual_seed(0))
    sample, before = whole_text(ids[0].tolist()), model(ids).logits
    with recording(model, [("sink_window", SINK)], fisher) as recorder:
        run_backward(model, sample, "given", "nll", torch.Generator())
        squared = recorder.take()[0]
        recorder.estimator = effect
        run_backward(model, sample, "given", "nll", torch.Generator())
        signed = recorder.take()[0]
    assert torch.equal(model(ids).logits, before)  # the model is as it was
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with Direct(model) as direct:
        run_backward(model, sample, "given", "nll", torch.Generator())
    blocks = -(-N // 64)
    assert squared.shape == (len(direct.steps), ModelInfo.of(model).kv_heads, blocks, blocks)
    for table, steps in zip(zip(squared, signed, strict=True), direct.steps.values(), strict=True):
        assert steps.grad is not None
        rows = torch.nn.functional.pad(steps.grad, (0, 64 * blocks - N)).unflatten(2, (blocks, 64)).movedim(0, 2)
        for found, expected in zip(table, (rows.square().sum(-1), rows.sum(-1)), strict=True):
            seen = torch.ones(blocks, blocks).tril().bool()  # a block sees no later one
            torch.testing.assert_close(found[:, seen], expected[:, seen].float(), rtol=2e-5, atol=1e-9)
    assert squared[..., 3, 3].min() > 0  # a real cut does harm
    assert peak_bytes(model, 2048) > peak_bytes(model, 1024) > 0
