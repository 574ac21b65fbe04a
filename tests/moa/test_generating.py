"""`moa.generate_text` from Python, on a model that is loaded already."""

import pytest

import moa
from moa.plans.patterns import Rule

PROMPT = "The sea is calm today. " * 20


@pytest.fixture(scope="module")
def loaded(model_folder):
    return moa.load_model(model_folder)


def test_pieces_are_the_text_and_the_model_is_left_as_it_was(loaded, tmp_path):
    model, tokenizer = loaded
    theirs, plan, pieces = model.generation_config, moa.Plan.from_rules(model, {}, defaults=Rule(alpha=128, beta=0)), []
    found = moa.generate_text(loaded, plan, PROMPT, max_new_tokens=6, stream=pieces.append)
    assert found.text == "".join(pieces)
    assert (found.prompt, found.length, found.steps) == (len(tokenizer(PROMPT)["input_ids"]), found.prompt + 5, 5)
    assert 0 < found.kv_bytes < found.dense_kv_bytes
    assert model.generation_config is theirs
    (tmp_path / "prompt.txt").write_text(PROMPT)
    assert moa.generate_text(loaded, plan, tmp_path / "prompt.txt", max_new_tokens=6).text == found.text


@pytest.mark.parametrize(
    ("prompt", "more", "says"), [(" \n", {}, "the prompt is empty"), (PROMPT, {"dtype": "float16"}, "loaded")]
)
def test_what_cannot_be_asked(loaded, prompt, more, says):
    with pytest.raises(moa.MoaError, match=says):
        moa.generate_text(loaded, moa.Plan.dense(loaded[0]), prompt, **more)
