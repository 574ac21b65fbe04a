"""A tiny model for the byte tokenizer, made on the spot; lets the tests share the sources in `noise.py`."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def model(tokenizer: Any) -> Any:
    """Two Llama layers, two groups of two query heads, random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
