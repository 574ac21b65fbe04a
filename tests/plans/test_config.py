"""Limits, windows and shapes, whichever fields of a config say them."""

from typing import Any

import pytest

from moa.plans.config import longest_text, window_of
from moa.plans.errors import Unsupported
from moa.plans.model import ModelInfo, Sliding

transformers = pytest.importorskip("transformers")

SHAPE = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}


@pytest.mark.parametrize(
    ("positions", "rope", "longest"),
    [
        (4096, None, 4096),
        (1024, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}, 4096),  # as Qwen2.5
        (1024, {"rope_type": "yarn", "factor": 4.0}, 4096),
        (163840, {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840),  # DeepSeek
        (40960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),  # Qwen3
        (2048, {"rope_type": "linear", "factor": 2.0}, 4096),
        (2048, {"rope_type": "dynamic", "factor": 2.0}, 4096),
        (131072, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                  "original_max_position_embeddings": 8192}, 131072),
    ],
)  # fmt: skip
def test_longest_text(positions: int, rope: dict[str, Any] | None, longest: int) -> None:
    given = {} if rope is None else {"rope_parameters": {"rope_theta": 1e4, **rope}}
    assert longest_text(transformers.LlamaConfig(**SHAPE, max_position_embeddings=positions, **given)) == longest


def test_longest_text_of_other_configs() -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    phi = transformers.Phi3Config(
        **SHAPE, pad_token_id=0, max_position_embeddings=8192, original_max_position_embeddings=2048,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
    )  # fmt: skip
    assert longest_text(phi) == 8192
    assert longest_text(transformers.GPT2Config(n_positions=512)) == 512
    assert longest_text(transformers.BloomConfig()) is None
    gemma = {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": gemma}
    both = transformers.Gemma3Config(text_config={"max_position_embeddings": 1024, "rope_parameters": rope})
    assert longest_text(both) == 8192


def test_a_window_no_shorter_than_the_longest_text_is_none() -> None:
    whole = transformers.Phi3Config(**SHAPE, pad_token_id=0, sliding_window=262144, max_position_embeddings=4096)
    assert window_of(whole) is None
    assert ModelInfo.of(whole).ruled_layers == (0, 1, 2, 3)
    shorter = transformers.Phi3Config(**SHAPE, pad_token_id=0, sliding_window=2047, max_position_embeddings=4096)
    assert window_of(shorter) == 2047
    with pytest.raises(Unsupported, match=r'sliding window of 2047.* set "sliding_window": null in its config.json'):
        ModelInfo.of(shorter)
    gemma = transformers.Gemma3TextConfig(num_hidden_layers=6, sliding_window=1024, max_position_embeddings=1024)
    assert ModelInfo.of(gemma).sliding is None


def test_gemma4_whose_sliding_layers_have_other_heads() -> None:
    config = transformers.Gemma4TextConfig(
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4, head_dim=16, global_head_dim=32,
        num_global_key_value_heads=2, attention_k_eq_v=True, sliding_window=32,
    )  # fmt: skip
    info = ModelInfo.of(config)
    assert info.sliding == Sliding(window=32, layers=(0, 1, 2, 3, 4), kv_heads=4, head_size=16)
    assert (info.kv_heads, info.head_size, info.ruled_layers) == (2, 32, (5,))
    assert info.kv_shape(0) == (4, 16, 16)
    assert info.kv_shape(5) == (2, 32, 32)
    assert info.dense_kv_bytes(100, dtype="bfloat16") == 2 * 2 * (100 * 2 * 32 + 31 * 5 * 4 * 16)
    assert info.ruled_share(100) == pytest.approx(100 * 2 * 32 / (100 * 2 * 32 + 31 * 5 * 4 * 16))


class Loose:
    """A config that checks nothing."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


FIELDS: dict[str, Any] = {
    **SHAPE, "head_dim": 8, "max_position_embeddings": 128, "sliding_window": 64, "layer_types": ["full_attention"] * 4,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, "architectures": ["X"],
    "is_encoder_decoder": False, "kv_lora_rank": None, "num_kv_shared_layers": 0, "attention_chunk_size": None,
    "_name_or_path": "x", "cross_attention_layers": None,
}  # fmt: skip
ODD = (None, 0, 1, -1, 1.5, True, "x", [], [1], [1, 2, 3, 4], ["full_attention"], {}, {"full_attention": None})


@pytest.mark.parametrize("field", FIELDS)
def test_a_config_of_any_shape_is_read_or_refused_by_name(field: str) -> None:
    assert ModelInfo.of(Loose(**FIELDS)).layers == 4
    for value in (*ODD, KeyError):
        fields = {**FIELDS, field: value}
        if value is KeyError:
            del fields[field]
        config = Loose(**fields)
        longest = longest_text(config)
        assert longest is None or longest > 0
        try:
            info = ModelInfo.of(config)
        except Unsupported:
            continue
        assert ModelInfo.model_validate(info.model_dump()) == info


def test_full_layers_that_differ_are_refused() -> None:
    assert ModelInfo.of(Loose(**FIELDS | {"num_key_value_heads": [2, 2, 2, 2]})).kv_heads == 2
    with pytest.raises(Unsupported, match=r"layers 0 and 2 of X differ.*\(8, 2, 8\) and \(8, 4, 8\)"):
        ModelInfo.of(Loose(**FIELDS | {"num_key_value_heads": [2, 2, 4, 2]}))
