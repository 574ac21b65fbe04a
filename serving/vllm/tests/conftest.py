"""Fixtures: the tiny model, engines that run in this process, and what `moa.apply` says."""

import os

os.environ.update(
    HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="WARNING",
    VLLM_CPU_OMP_THREADS_BIND="nobind", TRITON_INTERPRET="1",
)  # fmt: skip
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would win over every pool

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny import KEYDIFFS, KV_HEADS, LAYERS, PROMPTS, VOCABULARY, WINDOWS, Answer, greedy
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import moa
from moa.plans.plan import Plan


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny model with grouped heads; its words are w0, w1, …."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=128, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=KV_HEADS, head_dim=32, max_position_embeddings=2048, initializer_range=0.2,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def plans(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Plan files by what their sinks hold."""
    folder = tmp_path_factory.mktemp("plans")
    config = LlamaConfig.from_pretrained(model)
    for name, rules in (("windows", WINDOWS), ("keydiffs", KEYDIFFS)):
        Plan.from_rules(config, dict(enumerate(rules))).save(folder / f"{name}.yaml")
    return {name: str(folder / f"{name}.yaml") for name in ("windows", "keydiffs")}


@pytest.fixture(scope="session")
def wanted(model: str, plans: dict[str, str]) -> Callable[..., list[Answer]]:
    """What `moa.apply` with the reference says under a plan."""
    found: dict[str, list[Answer]] = {}

    @torch.no_grad()
    def answers(plan: str, prompts: list[list[int]] = PROMPTS) -> list[Answer]:
        key = f"{plan} {prompts}"
        if key not in found:
            reference = LlamaForCausalLM.from_pretrained(model).eval()
            with moa.apply(reference, plans[plan], backend="reference"):
                found[key] = [greedy(reference, ids) for ids in prompts]
        return found[key]

    return answers


@pytest.fixture
def engine(model: str, plans: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Start vLLM under a plan."""
    from vllm import LLM

    made: list[Any] = []

    def start(plan: str | None, **settings: Any) -> Any:
        usual = {
            "dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "max_num_seqs": 8,
            "max_num_batched_tokens": 1024, "enable_prefix_caching": False, "kv_cache_memory_bytes": 32 << 20,
            "distributed_executor_backend": "uni", "disable_log_stats": False,
            "additional_config": {"moa_plan": plans[plan]} if plan else {},
        }  # fmt: skip
        made.append(LLM(model, **(usual | settings)))
        return made[-1]

    yield start
    made.clear()
    gc.collect()
