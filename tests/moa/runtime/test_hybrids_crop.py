"""Tokens that are taken back from models whose layers are of several kinds."""

from typing import Any

import pytest
import torch
from feeding import feed
from hybrids import FAMILIES, ids_of, made, make, plan_of

import moa
from moa import KVCache, Plan
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo

CLOSE = {"rtol": 0, "atol": 1e-8}
CROPS = (
    "Lfm2", "Lfm2Moe", "Lfm3", "Llama4Text", "Gemma4Text", "Gemma4Sharing", "Gemma3nText", "GptOss", "GraniteSWA",
    "Gemma2", "GPTBigCode", "DeepseekV2", "DeepseekV3", "Glm4MoeLite", "MiniCPM3", "LongcatFlash",
)  # fmt: skip
"""Families whose layers keep keys or convolutions alone."""


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def model(family) -> Any:
    return made(family)


@torch.no_grad()
def test_tokens_are_taken_back_whole_or_not_at_all(family, model):
    plan, ids = plan_of(model), ids_of(1, 220)
    with moa.apply(model, plan, "torch"):
        kept, cropped = KVCache(plan), KVCache(plan)
        feed(model, kept, ids, [200])
        feed(model, cropped, ids, [200])
        cropped.activate_past_recording()
        if family not in CROPS:
            feed(model, cropped, ids_of(1, 205), [1] * 5)
            with pytest.raises(Unsupported, match="cannot crop: layer 0 keeps a state, which holds"):
                cropped.crop(-5)
            return
        feed(model, cropped, ids_of(1, 205), [5])
        cropped.crop(torch.tensor(-5))  # as transformers 5.17 counts drafts
        assert cropped.get_seq_length() == 200
        assert isinstance(cropped.get_seq_length(), int)
        torch.testing.assert_close(feed(model, cropped, ids, [20]), feed(model, kept, ids, [20]), **CLOSE)
        cropped.crop(0)
        held = cropped.state_bytes
        feed(model, cropped, ids_of(1, 230), [10])
        cropped.crop(0)
        assert cropped.state_bytes == held  # a state is not held on to for longer than it takes
        if cropped.state_bytes:
            with pytest.raises(
                Unsupported, match=r"cannot crop 2 tokens: layer 0 is a convolution that holds its last \d"
            ):
                cropped.crop(-2)


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({"Lfm2", "Lfm3"} & FAMILIES.keys()))
def test_a_short_text_that_a_convolution_holds_whole_can_be_taken_back(family):
    model, ids = make(family), torch.full((1, 2), 7)
    options = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False
    }  # fmt: skip
    expected = model.generate(ids, **options)
    with moa.apply(model, Plan.dense(model), "torch"):
        assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=4, **options), expected)
        unrecorded = KVCache(Plan.dense(model))
        feed(model, unrecorded, ids, [2])
        with pytest.raises(Unsupported, match="cannot crop 1 tokens: layer 0 is a convolution"):
            unrecorded.crop(-1)


@torch.no_grad()
@pytest.mark.parametrize("family", sorted({"Gemma4Text", "Llama4Text"} & FAMILIES.keys()))
def test_tokens_are_not_taken_back_from_a_window_that_no_longer_holds_those_before_them(family):
    model, ids = make(family), ids_of(1, 50)
    window = ModelInfo.of(model).sliding.window
    plan = Plan.dense(model)
    with moa.apply(model, plan, "torch"):
        cache = KVCache(plan)
        feed(model, cache, ids, [window + 1])
        cache.activate_past_recording()
        with pytest.raises(Unsupported, match=f"cannot crop 5 tokens: layer 0 with a sliding window of {window}"):
            cache.crop(-5)
