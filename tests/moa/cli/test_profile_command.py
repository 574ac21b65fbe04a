"""`moa profile` as a process: killed, shared between processes, on a model spread over devices."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moa import profiling as command
from moa.cli import main as cli
from moa.hf.load import load_model
from moa.profiler.collect import collect
from moa.profiler.estimate import Pace
from moa.profiler.profile import Profile
from moa.profiler.settings import Settings
from moa.profiler.sources import SOURCES

OPTIONS = ["--lengths", "256,320", "--samples", "12", "--source", "text", "--seed", "5"]
SAMPLES = 24

Run = Callable[..., None]


@pytest.fixture(scope="module")
def run() -> Run:
    """Runs a command line in this process."""

    def run(*args: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["moa", *args])
            assert cli.main() == 0

    return run


@pytest.fixture(scope="module")
def whole(run: Run, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole") / "profile.safetensors"
    run("profile", str(model_folder), "-o", str(output), *OPTIONS)
    return output


def environment() -> dict[str, str]:
    """As many threads as here: with others, sums differ in their last bits."""
    return os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}


def test_killed_and_run_again_it_writes_the_same_bytes(
    run: Run, model_folder: Path, whole: Path, tmp_path: Path
) -> None:
    output = tmp_path / "profile.safetensors"
    finished = Path(f"{output}.partial")
    line = ["profile", str(model_folder), "-o", str(output), *OPTIONS]
    with subprocess.Popen(
        [sys.executable, "-m", "moa", *line], env=environment(), stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and not list(finished.glob("*.safetensors")):
            time.sleep(0.002)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    assert 0 < len(list(finished.glob("*.safetensors"))) < SAMPLES
    run(*line)
    assert output.read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_on_resume_the_time_is_of_what_is_left(
    run: Run, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    output, left = tmp_path / "p.safetensors", list[int]()

    class Noted(Pace):
        def __init__(self, todo: Any) -> None:
            super().__init__(tasks := list(todo))
            left.append(len(tasks))

    def killed(*_: Any) -> None:
        if len(list(Path(f"{output}.partial").glob("*.safetensors"))) == 3:
            raise KeyboardInterrupt

    line = ["profile", str(model_folder), "-o", str(output), "--lengths", "768,832", "--samples", "2"]
    line += ["--source", "text", "--source", "facts"]
    monkeypatch.setattr("moa.profiling.Pace", Noted)
    with monkeypatch.context() as patch:
        patch.setattr("moa.cli.common.Bar.__call__", killed)
        patch.setattr(sys, "argv", ["moa", *line])
        assert cli.main() == 130
    assert "6 samples; about" in capfd.readouterr().err
    run(*line)
    assert left == [6, 3]
    err = capfd.readouterr().err
    assert "6 samples, 3 of them finished; about" in err
    assert "minutes left, by samples of 832 tokens" in err
    assert "facts: measured at the shortest length only, 768 tokens" in err


def test_the_memory_that_it_tells_is_what_the_process_takes(model_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, torch; from moa.cli import main; from moa.bench.timing import peak_bytes\n"
        "code = main.main(); print(peak_bytes(torch.device('cpu'))); sys.exit(code)"
    )
    line = ["profile", str(model_folder), "-o", str(tmp_path / "p.safetensors"), "--lengths", "4096", "--samples", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *line, "--source", "text"], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = float(re.search(r"about (\d+\.\d) GiB of memory", " ".join(done.stderr.split()))[1])  # type: ignore[index]
    taken = int(done.stdout.split()[-1]) / 2**30
    assert taken <= told <= 1.25 * taken + 0.1


def test_each_process_takes_a_device_and_waits_long(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, asked = list[int](), list[timedelta]()
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda _kind, timeout: asked.append(timeout))
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 3)
    assert command._processes(own_device=True)[:2] == (3, 4)
    assert taken == [3]
    assert asked[0] >= timedelta(days=7)
    command._processes(own_device=False)
    assert taken == [3]


@pytest.mark.full
def test_two_processes_write_the_single_process_profile(model_folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "profile.safetensors"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "moa"]
    line = ["profile", str(model_folder), "-o", str(output), *OPTIONS]
    done = subprocess.run(
        [sys.executable, *launch, *line], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"{SAMPLES} samples" in done.stderr  # once: the second process is quiet
    one, two = Profile.load(whole), Profile.load(output)
    assert one.tokens == two.tokens
    for cut, table in one.cuts.items():
        np.testing.assert_allclose(two.cuts[cut], table, rtol=1e-5, atol=0)
    assert output.read_bytes() == whole.read_bytes()
    assert list(tmp_path.iterdir()) == [output]


def test_device_map_auto(run: Run, model_folder: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "profile.safetensors"
    run("profile", str(model_folder), "-o", str(output), *OPTIONS, "--device-map", "auto")
    one, two = Profile.load(whole), Profile.load(output)
    for cut, table in one.cuts.items():
        np.testing.assert_allclose(two.cuts[cut], table, rtol=1e-4, atol=1e-9)


def test_a_model_in_two_places(model_folder: Path, tmp_path: Path) -> None:
    """The last layer's weights stay on disk and are read when it runs: moved by the hooks that serve several GPUs."""
    places: dict[str, Any] = dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm"], "cpu")
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu", "model.layers.1": "disk"}
    tables = []
    for name, device_map in (("one", None), ("two", places)):
        model, tokenizer = load_model(model_folder, dtype="float32", device_map=device_map)
        parts = {p.device.type for p in model.parameters()}
        assert parts == ({"cpu"} if device_map is None else {"cpu", "meta"})
        output = tmp_path / f"{name}.safetensors"
        profile = collect(model, tokenizer, Settings((256,), samples=2), [SOURCES["text"]], output)
        assert profile is not None
        tables.append(profile.cuts["text", 256])
    assert tables[0].max() > 0
    np.testing.assert_allclose(tables[1], tables[0], rtol=1e-5, atol=0)
