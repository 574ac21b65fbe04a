"""Every Python block of the documentation runs, page by page, on a tiny random model and smaller settings."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from blocks import PAGES, ROOT, blocks, name_of
from transformers import AutoConfig

import moa
from moa.plans.model import ModelInfo

NAMES = (".model/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "MODEL")
"""Where the pages' models are."""
SMALLER = {
    "README.md": {"* 300": "* 30"},
    "docs/apply.md": {"max_new_tokens=200": "max_new_tokens=4"},
    "docs/compress.md": {"minutes=15": "minutes=0.001, lengths=(576, 640)"},
    "docs/evaluation.md": {'"single": 40, "four": 10, "text": 2': '"single": 1', "lengths=[2048]": "lengths=[576]"},
    "docs/refine.md": {"trials=30": "trials=1"},
}
"""What takes too long for a test, by page, and what stands in its place."""
WITH = [page for page in PAGES if blocks(page, "python")]


class Hub:
    """A hub whose repositories are folders of this machine."""

    def create_repo(self, repo_id, **_):
        Path(repo_id).mkdir(parents=True)

    def upload_file(self, repo_id, path_in_repo, path_or_fileobj, **_):
        (Path(repo_id) / path_in_repo).write_bytes(path_or_fileobj)


@pytest.fixture(scope="module")
def world(model_folder, make_profile, tmp_path_factory):
    """A folder with the files that the pages name."""
    folder = tmp_path_factory.mktemp("world")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copytree(model_folder, folder / name)
    config = AutoConfig.from_pretrained(model_folder)
    for name in ("plan.yaml", "demo/plan.yaml", "steps/plan-0.25.yaml"):
        (folder / name).parent.mkdir(exist_ok=True)
        moa.Plan.uniform(config, 0.5, at=1024).save(folder / name)
    made = make_profile(lengths=(512, 1024), keydiff=(64,))
    replace(made, model=ModelInfo.of(config)).save(folder / "profile.safetensors")
    return folder


def of_the_plan() -> ModelInfo:
    """Make the plan of docs/plan.md the plan at hand, with DuoAttention's numbers for its model."""
    Path("plan.yaml").write_text(blocks(ROOT / "docs" / "plan.md", "yaml")[0])
    model = moa.Plan.load("plan.yaml").model
    scores = np.random.default_rng(0).random((model.layers, model.kv_heads))
    np.savetxt("full_attention_heads.tsv", scores, delimiter="\t")
    Path("config.json").write_text(json.dumps({"sink_size": 64, "recent_size": 256}))
    return model


@pytest.mark.parametrize("page", WITH, ids=[name_of(page) for page in WITH])
def test_python_blocks_run(page, world, tmp_path, monkeypatch):
    here = tmp_path / "here"
    shutil.copytree(world, here)
    monkeypatch.chdir(here)
    monkeypatch.setenv("MOA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    model, tokenizer = moa.load_model(NAMES[0])
    names = {"model": model, "inputs": tokenizer("The sea is", return_tensors="pt")}
    if name_of(page) == "docs/plan.md":
        names["model"] = of_the_plan()
    smaller = dict(SMALLER.get(name_of(page), {}))
    for block in blocks(page, "python"):
        for old in [old for old in smaller if old in block]:
            block = block.replace(old, smaller.pop(old))
        exec(compile(block, str(page), "exec"), names)
    assert not smaller, "these are on the page no more"


def test_pages_are_named_as_they_are():
    assert SMALLER.keys() <= {name_of(page) for page in WITH}
