import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from moa.plans.model import ModelInfo, Sliding
from moa.profiler.profile import Profile, bin_size
from moa.profiler.read_tables import ReadTables

# No example may fail for being slow: the machine's load is not the code's fault.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
sys.path.insert(0, str(Path(__file__).parent / "families"))  # models that serve tests of several folders


@pytest.fixture(scope="session", autouse=True)
def plans_made_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Plans that `moa.compress` makes in tests are not kept among the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, for tests marked `full`; MOA_TEST_MODEL names another place."""
    here = Path(__file__).parents[1]
    folder = here / os.environ.get("MOA_TEST_MODEL", ".model/SmolLM2-135M-Instruct")
    assert (folder / "config.json").is_file(), f"{folder} is missing: python examples/demo_model.py {folder}"
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Every byte is a token; with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    return fast


@pytest.fixture(scope="session")
def model_folder(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama for that tokenizer: two layers, two groups of two query heads, 4,096 positions, random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def synthetic(
    lengths: Sequence[int] = (512, 1024), sources: Sequence[str] = ("text", "facts"), sinks: Sequence[int] = (64,),
    sliding: Sliding | None = None, layers: int = 2, seed: int = 0, keydiff: Sequence[int] = (),
    shares: Sequence[int] = (),
) -> Profile:  # fmt: skip
    """Return a profile of random harms, monotone or not; the edge at 0, which drops nothing, costs nothing."""
    info = ModelInfo(
        architecture="LlamaForCausalLM", layers=layers, query_heads=4, kv_heads=2, head_size=64,
        rope={"theta": 1e4, "type": "default"}, sliding=sliding,
    )  # fmt: skip
    variants = (*(("sink_window", size) for size in sinks), *(("keydiff_window", size) for size in keydiff))
    rng = np.random.default_rng(seed)
    cuts = {}
    for source in sources:
        for n in lengths:
            bins = -(-n // bin_size(n))
            shape = (len(variants), len(info.ruled_layers), info.kv_heads, bins, bins)
            table = np.tril(rng.exponential(1.0, shape)).astype(np.float32)
            table[..., 0] = 0
            cuts[source, n] = table
    tokens = {cut: 10 + i for i, cut in enumerate(cuts)}
    reads = None
    if shares:
        shape = len(variants), len(shares), len(info.ruled_layers), info.kv_heads
        tables = {cut: rng.exponential(1.0, shape).astype(np.float32) for cut in cuts}
        reads = ReadTables(tuple(shares), tables, {cut: 5 + i for i, cut in enumerate(cuts)})
    return Profile(info, variants, cuts, tokens, dict.fromkeys(cuts, 1), {"seed": 3}, reads=reads)


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., Profile]:
    return synthetic
