"""The profiler over the Triton kernels, under the interpreter: the tables of the plain form."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moa.plans.plan import Plan
from moa.profiler import recorder
from moa.profiler.backward import run_backward
from moa.profiler.calibration import whole_text
from moa.profiler.estimators import effect, fisher, mass

VARIANTS = (("keydiff_window", 128), ("sink_window", 64), ("keydiff_window", 64))


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=97,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_fused_tables_are_the_plain_ones(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = whole_text([i * 7 % 97 for i in range(260)])
    for estimator in (fisher, effect):
        tables = []
        for name in ("torch", "triton"):
            monkeypatch.setattr(recorder, "pick", lambda _device, name=name: name)
            with recorder.recording(model, VARIANTS, estimator) as recording:
                assert recording.fused(torch.zeros(1), 0) is (name == "triton")
                run_backward(model, sample, "given", "nll", torch.Generator())
                tables.append(recording.take())
        torch.testing.assert_close(tables[1], tables[0], rtol=1e-3, atol=1e-5 * float(tables[0].abs().max()))


def test_what_the_kernels_do_not_hold_is_measured_by_the_plain_form(
    model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "pick", lambda _device: "triton")
    for estimator, plan, dtype in ((mass, None, torch.float32), (fisher, Plan.dense(model), torch.float32),
                                   (fisher, None, torch.float64)):  # fmt: skip
        with recorder.recording(model, [("sink_window", 64)], estimator, plan) as recording:
            assert not recording.fused(torch.zeros(1, dtype=dtype), 0)
