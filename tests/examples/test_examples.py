"""Every example runs on a tiny random model."""

import io
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moa.plans.plan import Plan, Rule

FOLDER = Path(__file__).parents[2] / "examples"
SAYS = {
    "generate": ["KV cache", "tokens, dense"],
    "chat": ["tokens held in"],
    "long_document_qa": ["tokens read in", "Which statement binds names to values?"],
    "batch_throughput": ["dense ", "plan ", "tokens/s"],
    "dense_beside_plan": ["KL, nats", "KV cache"],
    "demo": ["answer"],
}


@pytest.fixture(scope="module")
def arguments(tokenizer, tmp_path_factory):
    """MODEL and PLAN."""
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    Plan.from_rules(model, {}, defaults=Rule(alpha=256, beta=0.0)).save(path / "plan.yaml")
    return [str(path), str(path / "plan.yaml")]


def run(name, monkeypatch, arguments):
    spec = spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Good morning.\nAnd what did I say?\nThank you.\n"))
    module.main()


@pytest.mark.parametrize("name", SAYS)
def test_example(name, arguments, monkeypatch, capsys):
    run(name, monkeypatch, arguments)
    out = capsys.readouterr().out
    for words in SAYS[name]:
        assert words in out


def test_a_file_of_the_users(arguments, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The sea is calm today. " * 40)
    for name in ("long_document_qa", "dense_beside_plan"):
        run(name, monkeypatch, [*arguments, str(text)])
    assert "to    920" in capsys.readouterr().out


def test_each_is_listed():
    names = {path.stem for path in FOLDER.glob("*.py")} - {"demo_model"}
    assert names == set(SAYS)
    assert all(len((FOLDER / f"{name}.py").read_text().splitlines()) <= 60 for name in names)
