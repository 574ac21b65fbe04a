"""Tiny random models of each family, random plans, profiles and costs."""

import sys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
import transformers
from masked import run_oracle
from torch import Tensor
from typer.testing import CliRunner

from moa.cli import main as cli
from moa.hf.environment import environment
from moa.hf.load import load_model
from moa.plans.model import ModelInfo
from moa.plans.patterns import KeyDiffWindow, Rule
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.cost import Costs

VOCABULARY = 61

FAMILIES = {
    "Llama": {},
    "Mistral": {"sliding_window": None},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Phi3": {"pad_token_id": 0},
    "Gemma3": {
        "head_dim": 16,
        "query_pre_attn_scalar": 40,  # so that the scale is not that of the head size
        "sliding_window": 48,
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    },
}


def make_model(family: str = "Llama", dtype: torch.dtype = torch.float64, seed: int = 0, **changes):
    """A model with 4 query heads on 2 KV heads of 16, weights large enough for attention to matter."""
    torch.manual_seed(seed)
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": None,
            "pad_token_id": None,
            **FAMILIES.get(family, {}),
            **changes,
        }
    )
    return getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()


def make_plan(model, seed: int) -> Plan:
    """Rules drawn from the whole range of kinds: constant, growing, shrinking to one block, full."""
    rng = np.random.default_rng(seed)
    kinds = [
        Rule(sink=64, alpha=64, beta=0.0),
        Rule(sink=64, alpha=200, beta=0.0),
        Rule(sink=128, alpha=0, beta=0.5),
        Rule(sink=64, alpha=-150, beta=0.75),
        Rule(sink=64, alpha=-100, beta=1.0),
        Rule(sink=64, alpha=0, beta=1.0),
    ]
    info = Plan.dense(model).model
    return Plan.from_rules(
        model,
        {layer: [kinds[i] for i in rng.integers(len(kinds), size=info.kv_heads)] for layer in info.ruled_layers},
        defaults=kinds[0],
    )


def make_keydiff_plan(model, seed: int) -> Plan:
    """As `make_plan`, most sinks holding other keys than the first."""
    plan, rng = make_plan(model, seed), np.random.default_rng(seed)
    groups = {
        layer: [KeyDiffWindow(**rule.model_dump(exclude={"pattern"})) if rng.random() < 0.8 else rule for rule in rules]
        for layer, rules in plan.groups.items()
    }
    return Plan.from_rules(model, groups, defaults=plan.defaults)


def make_reading_plan(model, seed: int) -> Plan:
    """As `make_keydiff_plan`, most groups reading less than they keep; at a few hundred tokens some of them choose."""
    plan, rng = make_keydiff_plan(model, seed), np.random.default_rng(seed)
    reads = [1, 1 / 16, 1 / 4, 3 / 8, 5 / 8]
    groups = {
        layer: [rule.model_copy(update={"read": float(rng.choice(reads))}) for rule in rules]
        for layer, rules in plan.groups.items()
    }
    return Plan.from_rules(model, groups, defaults=plan.defaults)


@pytest.fixture(scope="session")
def tiny() -> Callable:
    """Makes a tiny model: tiny(family, dtype, seed, **config changes); the same arguments give the same object."""
    return lru_cache(make_model)


@pytest.fixture(scope="session")
def fresh() -> Callable:
    """As `tiny`, a new object every time."""
    return make_model


@pytest.fixture(scope="session")
def save_tiny(tokenizer) -> Callable:
    """Saves a tiny float32 model and its tokenizer: (folder, **config changes) to the model."""

    def save(folder, **changes):
        model = make_model(dtype=torch.float32, vocab_size=len(tokenizer), **changes)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model

    return save


@pytest.fixture(scope="session")
def random_plan() -> Callable:
    return make_plan


@pytest.fixture(scope="session")
def keydiff_plan() -> Callable:
    return make_keydiff_plan


@pytest.fixture(scope="session")
def reading_plan() -> Callable:
    return make_reading_plan


@pytest.fixture
def model(fresh):
    return fresh()  # a test may leave it changed


@pytest.fixture
def plan(model, random_plan):
    return random_plan(model, 1)


@pytest.fixture(scope="session")
def oracle() -> Callable:
    return run_oracle


@pytest.fixture
def tokens() -> Callable:
    """Random token ids [batch, n], never the padding token."""

    def make(batch: int, n: int, seed: int = 0) -> Tensor:
        return torch.from_numpy(np.random.default_rng(seed).integers(1, VOCABULARY, (batch, n)))

    return make


@pytest.fixture
def moa_in(monkeypatch, capfd):
    """Runs the command line in a folder: (folder, arguments) to (exit code, out, err)."""

    def run(folder, *args: str) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(sys, "argv", ["moa", *args])
        code = cli.main()
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def refine() -> Callable:
    """Runs `moa refine` with these options."""
    return lambda *options: CliRunner().invoke(cli.app, ["refine", *options])


@pytest.fixture(scope="session")
def search() -> Callable:
    """Runs `moa search` with these options."""
    return lambda *options: CliRunner().invoke(cli.app, ["search", *options])


@pytest.fixture(scope="module")
def profile(model_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "p.safetensors"
    done = CliRunner().invoke(
        cli.app, ["profile", str(model_folder), "-o", str(path), "--lengths", "512", "--samples", "1"]
    )
    assert done.exit_code == 0, done.output
    return path


@pytest.fixture(scope="module")
def made_up(model_folder):
    """A profile of 512 and 1,024 tokens, text squared, facts by effect at the shorter alone, as `moa profile` does."""
    model, _ = load_model(model_folder)
    info, rng = ModelInfo.of(model), np.random.default_rng(0)
    cuts = {
        (source, n): np.tril(rng.exponential(1.0, (1, 2, 2, n // 64, n // 64))).astype(np.float32)
        for source, n in (("text", 512), ("facts", 512), ("text", 1024))
    }
    for table in cuts.values():
        table[..., 0] = 0
    counts = dict.fromkeys(cuts, 1)
    meta = {"seed": 0, "samples": 1, "labels": "greedy", "loss": None, "chat": False}
    return Profile(info, (("sink_window", 64),), cuts, counts, counts, meta, {"text": "fisher", "facts": "effect"})


@pytest.fixture
def costs(model_folder, tmp_path):
    """Costs, their figures made up, of this place."""
    model, _ = load_model(model_folder)
    terms = {
        "decode": {"step": 1.0, "sequence": 0.1, "block": 0.1, "keydiff": 0.1},
        "prefill": {
            "step": 1.0,
            **dict.fromkeys(("token", "whole", "windowed", "chunk", "keydiff", "keydiff_chunk"), 0.1),
        },
    }
    found = Costs(
        model=ModelInfo.of(model),
        environment=environment(model, None),
        terms=terms,
        error={"decode": 0.1, "prefill": 0.1},
        measured=(),
    )
    path = tmp_path / "costs.json"
    path.write_text(found.model_dump_json())
    return path
