"""The back-end for GPUs on a CPU, its kernels interpreted: vLLM's own runner feeds it, answers are the reference's."""

import pytest
import torch
from test_answers import ask, check
from tiny import prompt

from moa.plans.errors import Unsupported
from moa_vllm import checks, fused, layer

PROMPTS = [prompt(length, seed) for seed, length in enumerate((333, 62, 1))]
NEW = 8
"""Few, since the interpreter takes some 30 ms for each program of a kernel; the second answer begins a block."""


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch):
    monkeypatch.setattr(layer, "on_gpu", lambda: True)


def agrees(llm, wanted):
    check(ask(llm, PROMPTS, max_tokens=NEW), wanted("windows", PROMPTS), NEW)


@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 100}, {"enforce_eager": False}], ids=str)
def test_answers(engine, wanted, settings):
    """Prompts at once, in chunks beside requests that generate, and in a compiled model."""
    agrees(engine("windows", **settings), wanted)


def test_nothing_moves_between_steps(engine, wanted):
    """Blocks, tables and slots keep their addresses, as a CUDA graph needs: from the first step on all are known."""
    llm = engine("windows", enable_prefix_caching=True)
    agrees(llm, wanted)
    agrees(llm, wanted)
    layers = llm.llm_engine.vllm_config.compilation_config.static_forward_context
    called = [x.impl for name, x in layers.items() if name.endswith(".kv0")]
    assert [len(impl._places) for impl in called] == [1, 1, 1]
    assert not any(x.impl._places for name, x in layers.items() if name.endswith(".kv1"))


def test_rules_that_move_keys(engine):
    with pytest.raises(Unsupported, match="keydiff_window with vLLM is for CPUs so far"):
        engine("keydiffs")


def test_other_refusals():
    checks.fused({"scale": 1.0, "sinks": None}, ["scale"])
    with pytest.raises(Unsupported, match="on a GPU: lookback is not supported"):
        checks.fused({"scale": 1.0, "lookback": 5}, ["scale"])
    with pytest.raises(Unsupported, match="head sizes and strides in multiples of 16"):
        fused.heads_of([], [], 1024, 40, torch.bfloat16, torch.device("cpu"))
