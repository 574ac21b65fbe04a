"""The folder that every case gets a copy of: a tiny model, and one file of each kind that `moa` reads or writes."""

import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

from moa.cli import main as cli
from moa.hf.load import load_config
from moa.plans.model import ModelInfo
from moa.plans.patterns import KeyDiffWindow, Rule
from moa.plans.plan import Plan
from moa.plans.replace import replace_json
from moa.search.cost import FIXED, PLACE, Costs, term_names

TEXT = "The sea is calm today, and the gulls stand on the pier: nobody has told them that it is Monday. "

PROFILE = ["profile", "model", "--lengths", "256,320", "--samples", "2", "--source", "text"]
EVAL = [
    "eval", "model", "--plan", "plan.yaml", "--lengths", "384", "--needles", "1", "--four-needles", "0",
    "--ppl-windows", "1", "--no-uniform",
]  # fmt: skip
STUDY = [
    "refine", "profile.safetensors", "model", "--max-density", "0.9", "--validate-length", "512", "--trials", "2",
]  # fmt: skip


def make(folder: Path) -> Path:
    """Make the workplace; the current folder must be `folder`."""
    tokenizer = _tokenizer()
    with redirect_stderr(StringIO()):
        _model(len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    info = ModelInfo.from_config(load_config(folder / "model"))
    wide, narrow = Rule(alpha=0, beta=0.5), KeyDiffWindow(alpha=128, beta=0.0)
    Plan.from_rules(info, {0: [wide, narrow]}, defaults=Rule(alpha=128, beta=0.25)).save(folder / "plan.yaml")
    Plan.dense(info).save(folder / "dense.yaml")
    Plan.dense(info.model_copy(update={"layers": 3})).save(folder / "other.yaml")
    terms = {kind: dict.fromkeys(term_names(kind), 0.001) for kind in FIXED}
    about = dict(zip(PLACE, ("abacus", 1, "torch", "float32"), strict=True))
    costs = Costs(model=info, environment=about, terms=terms, error=dict.fromkeys(FIXED, 0.1), measured=())
    replace_json(folder / "costs.json", costs.model_dump(mode="json"))
    (folder / "prompt.txt").write_text(TEXT * 3)
    (folder / "docs.txt").write_text(TEXT * 5)
    rows = [{"text": TEXT * n, "n": n} for n in (4, 5, 1)]
    (folder / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    turns = [{"prompt": TEXT * 3, "response": TEXT * n} for n in (2, 3)]
    (folder / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    _parquet(rows, folder / "docs.parquet")
    (folder / "folder.yaml").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "dangling.yaml").symlink_to("nothing.yaml")
    (folder / "binary.bin").write_bytes(bytes(range(256)) * 5)
    (folder / "empty").write_bytes(b"")
    both = ["--source", "text", "--source", "facts"]
    _run("profile", "model", "--lengths", "512,640", "--samples", "1", *both, "-o", "profile.safetensors")
    _run(*PROFILE, "-o", "resumed.safetensors", stop_after=3)
    _run(*EVAL, "-o", "eval.json")
    _run(*STUDY, "-o", "study.yaml", "--storage", "study.journal")
    _run("search", "profile.safetensors", "-o", "found.yaml", "--max-density", "0.9")
    _run("compress", "model", "-o", "small", "--lengths", "576", "--minutes", "0.001", "--budget", "0.9")
    return folder


def _run(*line: str, stop_after: int | None = None) -> None:
    """Run a command line, which must succeed; with `stop_after`, interrupt it after so many samples."""
    from moa.cli.common import Bar

    calls, told = 0, StringIO()
    whole = Bar.__call__

    def stopping(bar: Bar, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_after:
            raise KeyboardInterrupt
        whole(bar, *args)

    quiet = redirect_stdout(told), redirect_stderr(told)
    with quiet[0], quiet[1], patch.object(sys, "argv", ["moa", *line]), patch.object(Bar, "__call__", stopping):
        code = cli.main()
    assert code == (0 if stop_after is None else 130), (line, code, told.getvalue())


def _tokenizer() -> Any:
    """Every byte is a token; adds its first special token, has a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    return fast


def _model(vocabulary: int) -> Any:
    """A Llama of two layers, two groups of two query heads, random weights large enough that texts differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, initializer_range=0.5, bos_token_id=0,
        eos_token_id=1,
    ))  # fmt: skip


def _parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
