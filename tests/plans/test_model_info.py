"""The fingerprint, read from real transformers configs built offline."""

import pytest
from pydantic import ValidationError

from moa.plans.errors import MoaError, PlanError, Unsupported
from moa.plans.model import ModelInfo, Sliding, batch_lengths, dtype_bytes

transformers = pytest.importorskip("transformers")

SHAPE = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64}


def test_llama():
    config = transformers.LlamaConfig(**SHAPE, rope_theta=5e5, name_or_path="hub/Tiny-Llama")
    assert ModelInfo.from_config(config) == ModelInfo(
        architecture="LlamaForCausalLM", layers=4, query_heads=8, kv_heads=2, head_size=8,
        rope={"theta": 5e5, "type": "default"}, name="Tiny-Llama",
    )  # fmt: skip


def test_llama3_rope_keeps_its_other_parameters():
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }  # fmt: skip
    config = transformers.LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 5e5, **scaling})
    info = ModelInfo.from_config(config)
    assert list(info.rope)[:2] == ["theta", "type"]
    assert info.rope["type"] == "llama3"
    assert info.rope["factor"] == 8.0


@pytest.mark.parametrize("family", ["Qwen2", "Qwen3", "Phi3"])
def test_other_dense_families(family):
    config = getattr(transformers, f"{family}Config")(**SHAPE, pad_token_id=0)
    info = ModelInfo.from_config(config)
    assert info.architecture == f"{family}ForCausalLM"
    assert (info.layers, info.group_size, info.ruled_layers) == (4, 4, (0, 1, 2, 3))
    assert info.head_size == (128 if family == "Qwen3" else 8)
    assert info.sliding is None


def test_a_config_without_kv_heads_is_mha():
    config = transformers.GPTNeoXConfig(num_hidden_layers=2, num_attention_heads=8, hidden_size=64)
    assert ModelInfo.from_config(config).kv_heads == 8


def test_qwen2_with_some_sliding_layers():
    config = transformers.Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=128, max_window_layers=3)
    info = ModelInfo.from_config(config)
    assert info.sliding == Sliding(window=128, layers=(3,))
    assert info.ruled_layers == (0, 1, 2)


def test_mistral_slides_everywhere_or_nowhere():
    info = ModelInfo.from_config(transformers.MistralConfig(**SHAPE, sliding_window=None))
    assert info.ruled_layers == (0, 1, 2, 3)
    with pytest.raises(Unsupported, match="every layer of MistralForCausalLM has its own sliding window of 32"):
        ModelInfo.from_config(transformers.MistralConfig(**SHAPE, sliding_window=32))


def test_gemma3_text_and_multimodal():
    text = dict(SHAPE, num_hidden_layers=8, head_dim=16, sliding_window=32)
    info = ModelInfo.from_config(transformers.Gemma3TextConfig(**text))
    assert info.architecture == "Gemma3ForCausalLM"
    assert info.sliding == Sliding(window=32, layers=(0, 1, 2, 3, 4, 6, 7))
    assert info.ruled_layers == (5,)
    assert info.rope == {"theta": 1e6, "type": "default"}  # of the full layers; the sliding ones have 10,000
    both = transformers.Gemma3Config(text_config=text, architectures=["Gemma3ForConditionalGeneration"])
    assert ModelInfo.from_config(both).differences(info) == [
        "architecture: Gemma3ForConditionalGeneration against Gemma3ForCausalLM"
    ]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (transformers.InklingTextConfig(num_hidden_layers=6), "is hybrid_sliding; plans know full_attention, hybrid")
        if hasattr(transformers, "InklingTextConfig")
        else (transformers.T5Config(), "encoder-decoder"),
        (
            transformers.Qwen3NextConfig(num_hidden_layers=3),
            "none of Qwen3NextForCausalLM's layers is full_attention, so none takes a rule: they are linear_attention",
        ),
        (
            transformers.LlamaConfig(
                num_hidden_layers=3,
                layer_types=["full_attention", "sliding_attention", "chunked_attention"],
                sliding_window=32,
                attention_chunk_size=32,
            ),
            "has sliding_attention and chunked_attention layers; plans know one kind of window",
        ),
        (transformers.T5Config(), "encoder-decoder"),
        (transformers.DeepseekV32Config(), "layer 0 of DeepseekV32ForCausalLM is indexed_attention"),
        (transformers.MambaConfig(), "no num_attention_heads"),
        (transformers.MllamaConfig(), "cross-attention"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_cannot_take_rules_is_refused_by_name(config, message):
    with pytest.raises(Unsupported, match=message):
        ModelInfo.from_config(config)


def test_layers_that_keep_no_keys_or_a_chunk_take_no_rules():
    info = ModelInfo.of(transformers.Qwen3NextConfig(num_hidden_layers=8, num_key_value_heads=2, head_dim=32))
    assert info.ruled_layers == (3, 7)
    assert info.keyless == {"linear_attention": (0, 1, 2, 4, 5, 6)}
    assert info.others == {"linear_attention": 6}
    assert info.dense_kv_bytes(100, 3, "bfloat16") == 3 * 100 * 2 * 2 * 2 * 32 * 2  # 2 layers, 2 heads, key and value
    kinds = ["linear_attention", "full_attention", "mlp", "full_attention", "moe"]
    info = ModelInfo.of(transformers.NemotronHConfig(layers_block_type=kinds))
    assert info.kinds == tuple(kinds)
    assert info.ruled_layers == (1, 3)
    info = ModelInfo.of(transformers.Llama4TextConfig(num_hidden_layers=8, attention_chunk_size=32))
    assert info.sliding == Sliding(window=32, layers=(0, 1, 2, 4, 5, 6), chunked=True)
    assert info.kinds[:4] == ("chunked_attention",) * 3 + ("full_attention",)
    whole = transformers.Llama4TextConfig(num_hidden_layers=8, attention_chunk_size=1024, max_position_embeddings=1024)
    assert ModelInfo.of(whole).ruled_layers == tuple(range(8))


def test_where_latents_are_cached_all_query_heads_share_one_vector():
    info = ModelInfo.of(transformers.DeepseekV3Config())
    assert (info.layers, info.query_heads, info.kv_heads, info.head_size, info.latent) == (61, 128, 1, 576, 512)
    assert info.dense_kv_bytes(100, 3, "bfloat16") == 3 * 100 * 61 * 576 * 2
    assert ModelInfo.of(transformers.LlamaConfig()).latent is None
    assert ModelInfo.of(transformers.LongcatFlashConfig()).layers == 56  # two attentions in each of 28


def test_layers_that_share_keys_take_no_rules_and_keep_none():
    info = ModelInfo.of(transformers.Gemma3nTextConfig())  # four sliding, one full, in turn
    assert info.ruled_layers == (4, 9, 14, 19)
    assert info.shared["full_attention"] == (24, 29, 34)
    assert {info.sources[layer] for layer in info.shared["sliding_attention"]} == {18}
    assert info.sources == {layer: layer for layer in info.keyed_layers} | {
        layer: {"full_attention": 19, "sliding_attention": 18}[kind]
        for kind, layers in info.shared.items()
        for layer in layers
    }
    assert info.readers.tolist() == [1, 1, 1, 4]
    assert info.others == {"sliding_attention": 16, "shared": 15}
    assert info.dense_kv_bytes(100, 2, "bfloat16") == 2 * 100 * 20 * 2 * 2 * 256 * 2  # 20 layers, 2 heads, k and v
    assert ModelInfo.model_validate_json(info.model_dump_json()) == info


def test_hybrid_layers_take_rules_and_keep_a_state():
    info = ModelInfo.of(transformers.FalconH1Config(num_hidden_layers=3))
    assert info.ruled_layers == info.hybrid == info.stateful_layers == (0, 1, 2)
    assert info.others == {}
    info = ModelInfo.of(transformers.Zamba2Config(num_hidden_layers=54))
    assert info.hybrid == info.ruled_layers
    assert info.stateful_layers == tuple(range(54))
    with pytest.raises(ValidationError, match="hybrid must be some of the layers with rules"):
        ModelInfo.model_validate(info.model_dump() | {"hybrid": [0]})


def test_shared_layers_follow_those_that_keep_their_keys():
    info = ModelInfo.of(transformers.LlamaConfig(**SHAPE)).model_dump()
    for shared, problem in (
        ({"sliding_attention": [3]}, "must follow all layers that are sliding_attention"),
        ({"full_attention": [1, 3]}, r"must follow all layers that are full_attention, \[0, 2\], found \[1, 3\]"),
        ({"full_attention": [0, 1, 2, 3]}, "0 to 3"),
        ({"conv": [3]}, "conv"),
    ):
        with pytest.raises(ValidationError, match=problem):
            ModelInfo.model_validate(info | {"shared": shared})
    assert ModelInfo.model_validate(info | {"shared": {"full_attention": [2, 3]}}).readers.tolist() == [1, 3]


def test_a_layer_has_one_kind_and_some_layer_takes_rules():
    info = ModelInfo.of(transformers.LlamaConfig(**SHAPE)).model_dump() | {"sliding": {"window": 8, "layers": [0]}}
    for keyless, problem in (
        ({"conv": [0]}, "twice"),
        ({"conv": [4]}, "0 to 3"),
        ({"conv": [1, 2, 3]}, "leave a layer"),
    ):
        with pytest.raises(ValidationError, match=problem):
            ModelInfo.model_validate(info | {"keyless": keyless})
    with pytest.raises(ValidationError, match="linear_attention"):
        ModelInfo.model_validate(info | {"keyless": {"full_attention": [1]}})


def test_of_takes_a_model_a_config_or_itself():
    config = transformers.LlamaConfig(**SHAPE, intermediate_size=16, vocab_size=16)
    info = ModelInfo.of(config)
    assert ModelInfo.of(transformers.LlamaForCausalLM(config)) == info
    assert ModelInfo.of(info) is info


def test_differences_name_fields_and_both_values_but_not_names():
    info = ModelInfo.of(transformers.LlamaConfig(**SHAPE))
    other = info.model_copy(update={"layers": 5, "name": "other", "rope": {"theta": 1e4, "type": "yarn"}})
    assert info.differences(other) == [
        "layers: 4 against 5",
        "rope: {'theta': 10000.0, 'type': 'default'} against {'theta': 10000.0, 'type': 'yarn'}",
    ]
    assert info.differences(info.model_copy(update={"name": "other"})) == []


@pytest.mark.parametrize(
    "change",
    [{"kv_heads": 3}, {"layers": 0}, {"sliding": {"window": 8, "layers": [4]}}, {"extra": 1},
     {"sliding": {"window": 8, "layers": [0, 1, 2, 3]}}, {"sliding": {"window": 8, "layers": []}}],
)  # fmt: skip
def test_inconsistent_shapes_are_refused(change):
    fields = ModelInfo.of(transformers.LlamaConfig(**SHAPE)).model_dump()
    with pytest.raises(ValidationError):
        ModelInfo.model_validate({**fields, **change})


@pytest.mark.parametrize("lengths", [[7], [40, 3], [1, 90, 90]])
def test_dense_bytes_are_those_of_dynamic_cache(lengths):
    torch = pytest.importorskip("torch")
    config = transformers.Gemma3TextConfig(
        num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2, hidden_size=16, head_dim=4,
        intermediate_size=8, vocab_size=16, sliding_window=32, sliding_window_pattern=3,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    width = max(lengths)
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    with torch.no_grad():
        cache = model(torch.zeros_like(mask), attention_mask=mask).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert ModelInfo.of(model).dense_kv_bytes(lengths, dtype=model.dtype) == held


def test_dtype_bytes():
    assert [dtype_bytes(d) for d in ("float32", "bfloat16", "torch.float16", 1)] == [4, 2, 2, 1]
    for bad in ("int3", 0, None):
        with pytest.raises(PlanError, match="dtype must be one of float64, float32"):
            dtype_bytes(bad)


def test_batch_lengths():
    assert batch_lengths(5, 3).tolist() == [5, 5, 5]
    assert batch_lengths([5, 6], 1).tolist() == batch_lengths([5, 6], 2).tolist() == [5, 6]
    for n, batch in [(5, 0), ([5, 6], 3), ([], 1), ([1.5], 1), (-1, 1), ([[1]], 1), ("x", 1)]:
        with pytest.raises(MoaError, match="must be"):
            batch_lengths(n, batch)
