"""What users get wrong, each as they type it: one line that says what, exit code 2, and no file changed."""

import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moa.cli import main as cli
from moa.hf.load import load_config
from moa.plans.model import ModelInfo
from moa.plans.patterns import PATTERNS
from moa.plans.plan import Plan
from moa.profiler.profile import Profile
from moa.search.cost import Costs

EVAL = "--needles 1 --four-needles 0 --ppl-windows 0 --lengths 512"


@pytest.fixture(scope="module")
def workplace(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, plans and profiles good and bad, documents, and outputs of earlier runs."""
    here = tmp_path_factory.mktemp("workplace")
    shutil.copytree(model_folder, here / "model")
    info = ModelInfo.from_config(load_config(model_folder))
    Plan.uniform(info, 0.5, at=1024).save(here / "plan.yaml")
    Plan.dense(info.model_copy(update={"layers": 3})).save(here / "other.yaml")
    text = (here / "plan.yaml").read_text()
    (here / "cut.yaml").write_text(text[: text.index("head_size")])
    (here / "tabs.yaml").write_text(text.replace("defaults: ", "defaults:\n\t"))
    (here / "unknown.yaml").write_text(text.replace("alpha", "alpah"))
    (here / "unknown-top.yaml").write_text(text + "colour: blue\n")
    (here / "list.yaml").write_text("- a\n- b\n")
    (here / "empty.yaml").write_text("")
    (here / "binary.yaml").write_bytes(bytes(range(256)))

    cuts = {("text", 512): np.zeros((1, 2, 2, 8, 8), np.float32)}
    Profile(info, (("sink_window", 64),), cuts, {("text", 512): 9}, {("text", 512): 1}).save(here / "good.safetensors")
    about = {"seed": 0, "chat": True, "sources": {"text": ["sampled", "nll"]}}
    for name, model, meta in (("first", info, about), ("other", info.model_copy(update={"layers": 3}), {})):
        table = np.zeros((2, model.layers, 2, 8, 8), np.float32)
        both = (("sink_window", 64), ("keydiff_window", 64))
        one = Profile(model, both, {("text", 512): table}, {("text", 512): 9}, {("text", 512): 1}, meta)
        one.save(here / f"{name}.safetensors")
    place = Costs(model=info, environment={}, terms={}, error={}, measured=())
    (here / "placeless.json").write_text(place.model_dump_json())
    whole = (here / "good.safetensors").read_bytes()
    (here / "cut.safetensors").write_bytes(whole[:-1])
    (here / "head.safetensors").write_bytes(whole[:100])
    (here / "empty.safetensors").write_bytes(b"")
    (here / "garbage.safetensors").write_bytes(whole.replace(b'\\"model\\"', b'\\"madel\\"'))
    (here / "nan.safetensors").write_bytes(whole[:-4] + np.float32("nan").tobytes())

    (here / "nothing.jsonl").write_text("")
    (here / "nothing.txt").write_text("")
    (here / "short.txt").write_text("x" * 100)
    (here / "short.jsonl").write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in (90, 300, 120)))
    (here / "columns.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    rows = [{"text": "x" * 600}, {"text": None}, {}]
    (here / "null.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": "x", "response": "y" * 600}, {"prompt": "x", "response": None}]
    (here / "null-response.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "numbers.jsonl").write_text('{"text": 5}\n')
    (here / "broken.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (here / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    (here / "table.csv").write_text("text\nx\n")

    (here / "out.safetensors").write_bytes(whole)
    (here / "out.yaml").write_text(text)
    (here / "out.json").write_text(json.dumps({"environment": {}, "rows": []}))
    (here / "begun.safetensors.partial").mkdir()
    (here / "begun.safetensors.partial" / "settings.json").write_bytes(b"\xff of another run")
    (here / "out.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (here / "note.jsonl").write_text("an earlier result")
    return here


@pytest.fixture
def moa(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in the workplace; returns (code, out, err)."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moa", *shlex.split(line)])
        code = cli.main()
        return code, *capfd.readouterr()

    return run


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


MODELS = [
    (command.format(model), says)
    for command in ("profile {} -o out.safetensors", "eval {} -o out.json", "doctor {}")
    for model, says in [
        ("./missing", "no such folder"),
        ("nobody/missing", "from the hub"),
        ("missing.gguf", "no such .gguf file"),
        ("out.json", "not a .gguf one"),
        ("''", "name is empty"),
    ]
]
PLANS = [
    (command.format(plan), says)
    for command in (f"eval model --plan {{}} -o out.json {EVAL}", "doctor model {}", "show {} --png out.png")
    for plan, says in [
        ("missing.yaml", "no plan file missing.yaml"),
        ("model", "cannot read plan model"),
        ("cut.yaml", "cut.yaml, line 2: not valid YAML"),
        ("tabs.yaml", "tabs.yaml, line"),
        ("unknown.yaml", "alpah: unknown key"),
        ("unknown-top.yaml", "colour: unknown key"),
        ("list.yaml", "list.yaml, line 1"),
        ("empty.yaml", "empty.yaml, line 1"),
        ("binary.yaml", "binary.yaml: not UTF-8"),
        ("/dev/null", "cannot read plan /dev/null: it is a device"),
    ]
]
WRONG_MODEL = [
    (f"eval model --plan other.yaml -o out.json {EVAL}", "layers: 3 against 2"),
    ("doctor model other.yaml", "layers: 3 against 2"),
    ("show plan.yaml other.yaml --png out.png", "layers"),
]
PROFILES = [
    (f"search {name} -o out.yaml --max-density 0.5", says)
    for name, says in [
        ("missing.safetensors", "no profile at missing.safetensors"),
        ("model", "no profile at model"),
        ("cut.safetensors", "cut.safetensors is damaged"),
        ("head.safetensors", "head.safetensors is damaged"),
        ("empty.safetensors", "empty.safetensors is damaged"),
        ("garbage.safetensors", "garbage.safetensors"),
        ("nan.safetensors", "does not hold what was written"),
        ("plan.yaml", "plan.yaml is named as a plan; give a profile"),
        ("model/model.safetensors", "model/model.safetensors is not a profile"),
    ]
]
NUMBERS = [
    ("profile model -o out.safetensors --lengths 8192", "length 8192 is over the model's maximum of 4096"),
    ("profile model -o out.safetensors --lengths 512,100", "at least 256 tokens, found 100"),
    ("profile model -o out.safetensors --lengths ''", "lengths must be whole numbers"),
    ("profile model -o out.safetensors --lengths 1k", "lengths must be whole numbers"),
    ("profile model -o out.safetensors --samples 0", "samples must be at least 1, found 0"),
    ("profile model -o out.safetensors --samples -1", "samples must be at least 1, found -1"),
    ("profile model -o out.safetensors --samples two", "--samples"),
    ("profile model -o out.safetensors --sinks 65", "sinks of sink_window must be positive multiples of 64"),
    (
        "profile model -o out.safetensors --variant keydiff_window:65",
        "sinks of keydiff_window must be positive multiples of 64",
    ),
    (
        "profile model -o out.safetensors --lengths 512 --sinks 64,576",
        "sinks of sink_window must be at most the longest length, 512",
    ),
    (
        "profile model -o out.safetensors --lengths 512 --variant keydiff_window:16777216",
        "sinks of keydiff_window must be at most the longest",
    ),
    (
        "profile model -o out.safetensors --variant quest:64",
        f"a variant is PATTERN:SINK, of {', '.join(PATTERNS)}",
    ),
    ("profile model -o out.safetensors --variant sink_window", "a variant is PATTERN:SINK"),
    ("profile model -o out.safetensors --variant sink_window:-64", "a variant is PATTERN:SINK"),
    (
        "profile model -o out.safetensors --variant sink_window:64 --keydiff ''",
        "--variant replaces --sinks and --keydiff",
    ),
    (
        "search good.safetensors -o out.yaml --max-density 0.5 --pattern keydiff_window",
        "patterns of this profile are sink_window, found keydiff_window",
    ),
    ("profile model -o out.safetensors --source books", "source must be one of text, facts"),
    ("profile model -o out.safetensors --estimator magic", "estimator must be one of fisher"),
    ("profile model -o out.safetensors --labels all", "labels must be one of sampled, greedy, given, found 'all'"),
    ("profile model -o out.safetensors --loss all", "loss must be one of nll, margin, kl, found 'all'"),
    ("profile model -o out.safetensors --dtype int3", "dtype must be one of auto"),
    ("profile model -o out.safetensors --device-map sideways", "sideways"),
    ("profile model -o out.safetensors --lengths 256 --source text --source facts", "use a longer length"),
    ("profile model -o begun.safetensors --lengths 512", "settings.json is damaged, so nobody knows of which run"),
    (
        "profile model -o out.safetensors --lengths 512 --add other.safetensors",
        "other.safetensors is of another model than model",
    ),
    ("profile model -o out.safetensors --lengths 512 --add first.safetensors --sinks 128", "the same sinks"),
    (
        "profile model -o out.safetensors --lengths 512 --add first.safetensors --source text --estimator mass",
        "one estimator of text, found fisher and mass",
    ),
    (
        "profile model -o out.safetensors --lengths 512 --add first.safetensors --source text",
        "found the same of text in both: measure with another --seed",
    ),
    ("profile model", "--output"),
    ("profile model -o out.safetensors --lenghts 512", "--lenghts"),
    ("eval model -o out.json --lengths 8192", "length 8192 is over the model's maximum of 4096"),
    ("eval model -o out.json --lengths 0", "at least 256 tokens, found 0"),
    ("eval model -o out.json --needles 0 --four-needles 0 --ppl-windows 0", "one of them at least 1"),
    ("eval model -o out.json --ppl-windows -1", "found windows of held-out text (-1), contexts with one needle (20)"),
    ("eval model -o out.json --dtype int3", "dtype must be one of auto"),
    ("show plan.yaml --lengths 0", "length must be an integer of 1 or more, found 0"),
    ("show plan.yaml --lengths ''", "lengths must be whole numbers"),
    ("show plan.yaml --lengths 90000000000000", "lengths must be at most 16777216, found 90000000000000"),
    ("doctor model plan.yaml --length 90000000000000", "less than or equal to 16777216"),
    ("measure model -o new.json --lengths 512,8192", "length 8192 is over the model's maximum of 4096"),
    ("measure model -o new.json --lengths 100,512", "at least 256 tokens, found 100"),
    ("search good.safetensors -o out.yaml --max-density 0.5@99999999999999999999", "must be from 1 to 16777216"),
    ("search good.safetensors -o out.yaml --max-kv-gb 5@4096x100000000000", "its batch to 1048576"),
    ("search good.safetensors -o out.yaml --max-density 0.5 --costs placeless.json", "must have device, threads"),
    ("search good.safetensors -o out.yaml --max-density 0.5 --costs /dev/null", "it is a device, not a file"),
    (f"eval model -o /dev/null {EVAL}", "it is a device, not a file"),
    ("search good.safetensors -o out.yaml", "give at least one budget"),
    ("search good.safetensors -o out.yaml --max-density 0.001", "0.001"),
    ("search good.safetensors -o out.yaml --max-density half", "half"),
    (
        "search good.safetensors -o out.yaml --max-density 0.5 --source-weight books=1",
        "sources of this profile are text",
    ),
    ("serch good.safetensors", "serch"),
]
OUTPUTS = [
    (command.format(path), says)
    for command in (
        "profile model -o {} --lengths 512",
        "search good.safetensors -o {} --max-density 0.5",
        f"eval model -o {{}} {EVAL}",
        "show plan.yaml --png {}",
    )
    for path, says in [
        ("missing/out", "missing is no writable folder"),
        ("model", "cannot write model: it is a folder"),
        ("out.json/out", "out.json is no writable folder"),
        ("/proc/out", "/proc/out"),
    ]
] + [
    ("profile model -o model/model.safetensors", "model/model.safetensors is not a profile, so it is not replaced"),
    ("profile model -o note.jsonl", "note.jsonl is not a profile"),
    ("search good.safetensors -o good.safetensors --max-density 0.5", "good.safetensors is not a plan"),
    ("measure model -o model/config.json", "model/config.json is not a file of costs"),
    (f"eval model -o model/config.json {EVAL}", "model/config.json is not a result of `moa eval`"),
    ("bench model --plan plan.yaml -o out.json", "out.json is not a result of `moa bench`"),
    ("show plan.yaml --png plan.yaml", "plan.yaml is not a PNG"),
    (f"eval model -o out.jsonl {EVAL}", "must not end in .jsonl"),
    (f"eval model -o note.json {EVAL}", "note.jsonl, line 1: not a finished result"),
]
DATA = [
    (f"profile model -o out.safetensors --lengths 256,512 --data {data}", says)
    for data, says in [
        ("missing.jsonl", "no data file at missing.jsonl"),
        ("table.csv", "data must be .jsonl"),
        ("nothing.jsonl", "at least 512 tokens, found no documents"),
        ("nothing.txt", "at least 512 tokens, found no documents"),
        ("short.txt", "at least 512 tokens, found 1 documents, the longest of 100 tokens"),
        ("short.jsonl", "at least 512 tokens, found 3 documents, the longest of 300 tokens"),
        ("columns.jsonl", "needs a column text, or prompt and response; found answer, question"),
        ("null.jsonl", "every row of the column text; 2 of 3 have none, the first is row 2: None"),
        ("null-response.jsonl", "every row of the column response; 1 of 2 have none, the first is row 2: None"),
        ("numbers.jsonl", "every row of the column text; 1 of 1 have none, the first is row 1: 5"),
        ("broken.jsonl", "cannot read data broken.jsonl"),
        ("broken.parquet", "cannot read data broken.parquet"),
        ("hub:nobody/missing", "cannot read data hub:nobody/missing"),
    ]
]
CASES = [*MODELS, *PLANS, *WRONG_MODEL, *PROFILES, *NUMBERS, *OUTPUTS, *DATA]


@pytest.mark.parametrize(("line", "says"), CASES, ids=[line for line, _ in CASES])
def test_one_line_exit_code_2_and_nothing_lost(moa: Any, workplace: Path, line: str, says: str) -> None:
    before = files(workplace)
    code, out, err = moa(line)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert says in err
    assert files(workplace) == before
    assert "Traceback" not in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(moa: Any) -> None:
    code, _, err = moa("profile model -o out.safetensors --device-map cuda")
    assert (code, err) == (2, "error: device cuda: torch sees no CUDA device here\n")
