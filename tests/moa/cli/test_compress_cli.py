"""`moa compress`: what it prints, and its options from a file."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import moa
from moa.compressing import Compressed
from moa.plans.errors import MoaError

LEAST = ["--lengths", "576", "--minutes", "0.001"]


@pytest.fixture
def run(model_folder: Path, tmp_path: Path, moa_in: Any) -> Any:
    return partial(moa_in, tmp_path, "compress", str(model_folder))


def test_it_ends_with_numbers_and_the_line_that_uses_the_plan(run: Any, tmp_path: Path) -> None:
    code, out, err = run("-o", "out", *LEAST, "--budget", "0.5")
    assert code == 0
    plan = moa.Plan.load(tmp_path / "out" / "plan.yaml")
    assert plan.density(2304) <= 0.5
    for words in ("memory: ", "quality: ", "speed: ", "this plan gains", 'moa.apply(model, "out/plan.yaml")'):
        assert words in out
    assert "profile: 1 sample per source at 576 tokens" in err
    assert "would do for 4 samples of up to 576 tokens" in err
    code, out, err = run("-o", "out", *LEAST, "--budget", "0.5", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "out" / "figures.json").read_text())


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command hands to the function, which then stops."""
    found: dict[str, Any] = {}

    def stop(model: str, output: Path, **options: Any) -> Compressed:
        found.update(options, model=model, output=output)
        raise MoaError("that is all")

    monkeypatch.setattr(moa, "compress", stop)
    return found


def test_budgets_of_all_kinds(run: Any, told: dict[str, Any]) -> None:
    assert run("-o", "out")[2] == "error: that is all\n"
    assert told["budget"] == 0.25
    run("-o", "out", "--max-kv-gb", "1@2048", "--max-kv-gb", "2", "--max-decode-ms", "5@512x2")
    assert told["budget"] == {"kv_gb": ["1@2048", "2"], "decode_ms": ["5@512x2"]}


def test_options_from_a_file_give_way_to_the_line(run: Any, tmp_path: Path, told: dict[str, Any]) -> None:
    (tmp_path / "options.yaml").write_text(
        "budget: 0.3\nminutes: 7\nlengths: [576, 640]\nmax_kv_gb: 2@640\nmax-decode-ms: [1@640, 2@640x3]\n"
        "output: there\nquiet: true\nseed:\n"
    )
    assert run("--config", "options.yaml", "--minutes", "9")[0] == 2
    assert told["budget"] == {"density": ["0.3"], "kv_gb": ["2@640"], "decode_ms": ["1@640", "2@640x3"]}
    assert (told["minutes"], told["lengths"], told["output"], told["seed"]) == (9, (576, 640), Path("there"), 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("bugdet: 0.3", "options are output, budget, max-kv-gb, "),
        ("config: other.yaml", "found 'config'"),
        ("- 1", "must map names of options to values"),
        ("budget: [", "is not YAML"),
        ("minutes: soon", "'--minutes': Input should be a valid number"),
        ("\xe9\0", "is not YAML"),
    ],
)
def test_a_file_that_gives_no_options(run: Any, tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "options.yaml").write_bytes(text.encode("latin-1"))
    code, out, err = run("-o", "out", "--config", "options.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert run("-o", "out", "--config", "none.yaml")[2] == "error: none.yaml: No such file or directory\n"
