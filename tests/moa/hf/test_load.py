import json

import pytest
import torch
from hybrids import make
from transformers import Gemma2PreTrainedModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from moa.hf.load import load_config, load_model
from moa.plans.errors import MoaError


@pytest.fixture
def folder(tmp_path):
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_loads_a_folder_ready_for_use(folder):
    model, tokenizer = load_model(folder, device="cpu")
    assert not model.training
    assert tokenizer("a")["input_ids"] == [1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder, dtype):
    model, _ = load_model(str(folder), dtype=dtype, device="cpu")
    assert model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("flags", ["fpu avx512f avx512_bf16", "fp asimd bf16", "fpu avx512f", ""])
@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_a_cpu_computes_in_the_checkpoints_bfloat16_if_it_has_instructions_for_it(folder, monkeypatch, flags, stored):
    monkeypatch.setattr("moa.hf.environment._cpu", lambda entry: flags if entry == "flags" else "")
    load_model(folder, dtype=stored, device="cpu")[0].save_pretrained(folder)
    model, _ = load_model(folder, device="cpu")
    assert str(model.dtype) == ("torch.bfloat16" if "bf16" in flags and stored == "bfloat16" else "torch.float32")


def test_device_map_keeps_the_checkpoints_dtype(folder):
    model, _ = load_model(folder, device_map="cpu")
    assert model.dtype == torch.bfloat16


def test_a_soft_cap_is_not_left_to_torch_s_attention_which_would_drop_it(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # as transformers 5.17 has it
    make("Gemma2", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert load_model(tmp_path)[0].config._attn_implementation == "eager"


def test_config_alone_needs_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert load_config(folder).num_hidden_layers == 1


def test_leaves_the_loggers_as_they_were(folder, capfd):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(folder, device="cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr().err == ""


def _empty_folder(folder):
    for file in folder.iterdir():
        file.unlink()


def _truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _layer_missing(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))


def _other_size(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 33}))


def _unknown_type(folder):
    (folder / "config.json").write_text('{"model_type": "no_such_type"}')


def _corrupt_config(folder):
    (folder / "config.json").write_text("{")


def _setting(file, **settings):
    def write(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return write


def _no_vocabulary(folder):
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    found["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    path.write_text(json.dumps(found))


def _deep_config(folder):
    (folder / "config.json").write_text("[" * 100_000)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_setting("config.json", use_cache=None), "'use_cache' expected bool, got NoneType"),
        (_setting("config.json", num_hidden_layers="two"), "'num_hidden_layers' expected int"),
        (_setting("config.json", dtype="float99"), "float99"),
        (_setting("tokenizer_config.json", tokenizer_class=5), "transformers cannot load it: AttributeError"),
        (_setting("tokenizer_config.json", model_max_length="x"), "transformers cannot load it: TypeError"),
        (_setting("config.json", hidden_size=0), "weights missing or misshapen"),
        (_setting("config.json", use_return_dict=False), "'use_return_dict' of 'LlamaConfig' object has no setter"),
        (_setting("generation_config.json", compile_config={}), "transformers cannot load it: You provided `compile_c"),
        (_deep_config, "RecursionError"),
        (_no_vocabulary, "makes no tokens of text"),
        (_empty_folder, "no config.json"),
        (_truncated, "incomplete|deserializ"),
        (_layer_missing, "weights missing"),
        (_other_size, "misshapen, first lm_head.weight"),
        (_unknown_type, "no_such_type"),
        (_corrupt_config, "config.json"),
    ],
)
def test_damaged_folder_is_refused_in_one_line(folder, damage, says, recwarn, capfd):
    damage(folder)
    with pytest.raises(MoaError, match=says) as caught:
        load_model(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not recwarn
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("/no/such/folder", "no such folder"),
        ("./no-such-folder", "no such folder"),
        ("a/b/c", "not a hub id"),
        ("nobody/no-such-model", "from the hub"),
        ("no-such.gguf", "no such .gguf file"),
        (__file__, "not a .gguf one"),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_config])
def test_missing_model_is_refused_in_one_line(load, name, says):
    with pytest.raises(MoaError, match=says) as caught:
        load(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_gguf_says_which_package_is_missing(tmp_path, monkeypatch, package):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("moa.hf.load.find_spec", lambda name: None if name == package else True)
    with pytest.raises(MoaError, match=f"pip install {package}"):
        load_model(tmp_path / "m.gguf")


def test_damaged_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(MoaError, match=r"m\.gguf"):
        load_model(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["return_dict", "use_cache"])
def test_settings_of_a_checkpoint_that_say_no_leave_outputs_with_names(folder, name):
    _setting("config.json", **{name: False})(folder)
    model, _ = load_model(folder, device="cpu")
    assert model(torch.tensor([[1]])).logits.shape == (1, 1, 32)


def test_a_tokenizer_of_another_model_is_refused(folder):
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"a": 1', '"a": 40'))
    with pytest.raises(MoaError, match="numbers 'a' as 40, but the model has embeddings for 32 tokens"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (1e6, "float16")])
def test_weights_that_are_not_finite_are_refused(folder, value, dtype):
    model, _ = load_model(folder, device="cpu")
    model.model.norm.weight.data[0] = value
    model.save_pretrained(folder)
    with pytest.raises(MoaError, match=f"in torch.{dtype}, 1 weights are not finite, first model.norm.weight"):
        load_model(folder, device="cpu", dtype=dtype)


def test_an_added_token_may_have_no_embedding(folder):
    _, tokenizer = load_model(folder, device="cpu")
    tokenizer.add_tokens([f"<{i}>" for i in range(40)], special_tokens=True)
    tokenizer.save_pretrained(folder)
    _, tokenizer = load_model(folder, device="cpu")
    assert len(tokenizer) > 32


def test_an_added_token_of_any_text_needs_an_embedding(folder):
    _, tokenizer = load_model(folder, device="cpu")
    tokenizer.add_tokens([f"word{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(MoaError, match=r"numbers 'word\d+' as \d+, but the model has embeddings for 32 tokens"):
        load_model(folder, device="cpu")


def test_bad_arguments(folder):
    with pytest.raises(MoaError, match="dtype must be one of auto, float32, bfloat16, float16, found 'int8'"):
        load_model(folder, dtype="int8")
    with pytest.raises(MoaError, match="not both"):
        load_model(folder, device="cpu", device_map="auto")


@pytest.mark.full
def test_real_model(real_model):
    model, tokenizer = load_model(real_model)
    ids = tokenizer("The capital of France is", return_tensors="pt").to(model.device)
    out = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])
