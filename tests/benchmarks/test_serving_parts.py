"""Parts of `benchmarks/serving.py`: what is timed, what a server is told, and that no process is left behind."""

import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from moa.bench import timing
from moa.plans.plan import Plan

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


class Engine:
    """Stands for vLLM's: in each step a request is read by a chunk, and those that have been read get a token."""

    def __init__(self, chunk=256):
        self.requests, self.chunk = [], chunk
        self.scheduler = SimpleNamespace(waiting=[], running=[])
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(scheduler=self.scheduler))
        self.llm_engine, self.sizes = self, []

    def get_tokenizer(self):
        return SimpleNamespace(encode=lambda text: list(range(100_000)))

    def add_request(self, name, prompt, asked):
        length = len(prompt["prompt_token_ids"])
        self.requests.append(SimpleNamespace(num_computed_tokens=0, num_prompt_tokens=length, most=asked.max_tokens))

    def step(self):
        left = self.chunk
        for request in self.requests:
            unread = request.num_prompt_tokens - request.num_computed_tokens
            done = min(left, unread) if unread > 0 else 1
            request.num_computed_tokens += done
            left -= min(left, done)
        self.requests = [x for x in self.requests if x.num_computed_tokens < x.num_prompt_tokens + x.most - 1]
        self.scheduler.running[:] = self.requests


@pytest.fixture
def speed(monkeypatch):
    vllm = ModuleType("vllm")
    vllm.LLM, vllm.SamplingParams = None, lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    for name in ("serving_parts.engine", "serving_parts.speed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = dict(os.environ)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "40")
    import_module("serving_parts.engine")  # anew, since its package remembers an earlier one
    yield import_module("serving_parts.speed")
    for name in ("serving_parts.engine", "serving_parts.speed"):
        sys.modules.pop(name, None)
    os.environ.clear()
    os.environ.update(before)


def test_every_step_that_is_timed_is_of_the_whole_batch(speed, monkeypatch):
    sizes = import_module("serving_parts.sizes").FULL
    made, seen = Engine(), []
    monkeypatch.setattr(speed, "started", lambda *given: {"dense": made})

    def timed(call, device):
        call()
        seen.append(len(made.requests))
        return 1.0

    monkeypatch.setattr(timing, "timed", timed)
    found = speed.decode("model", {}, sizes, 8)
    assert seen == [8] * sizes.rounds * sizes.steps
    assert len(found["dense"]["seconds"]) == len(seen)
    with pytest.raises(RuntimeError, match="a step was timed of 8 requests, not 9"):
        speed.steps(made, 1, 9)


def test_one_request_of_the_longest_length_fits(speed):
    """A block of the pool is vLLM's own."""
    sizes = import_module("serving_parts.sizes").FULL
    name = "smollm2-135m-instruct-0.25"
    block = Plan.load(name).model.dense_kv_bytes(64)
    assert speed.engine.memory(name, sizes, 1) >= Plan.load(name).model.dense_kv_bytes(sizes.longest) + block


def test_engines_have_the_pools_that_they_are_told(speed):
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ


def test_a_server_is_not_told_what_engines_here_are(monkeypatch):
    for name in ("httpx", "openai"):
        if name not in sys.modules:
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["openai"], "AsyncOpenAI", object, raising=False)
    told = import_module("serving_parts.cancellations").environment(
        {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "HF_HUB_OFFLINE": "0", "A": "b"}
    )
    assert told == {
        "VLLM_CPU_OMP_THREADS_BIND": "0-1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING", "A": "b",
    }  # fmt: skip


STUBBORN = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); "
"""A server that does not end when it is told to, nor does what it starts."""
STARTS_MORE = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN + 'time.sleep(600)'!r}]); "
    f"{STUBBORN}time.sleep(600)"
)


def started(code):
    """A Python process in `benchmarks`, whose output ends when all have ended that it started."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=BENCHMARKS, stdout=subprocess.PIPE, text=True)


USES_A_SERVER = f"""
import os, sys, time
sys.stderr = sys.stdout
from serving_parts import processes
processes.PATIENCE = 0.1
with processes.server([sys.executable, "-c", {STARTS_MORE!r}], os.environ):
    sys.stdin.readline() if {{waits}} else time.sleep(600)
print("result", flush=True)
"""


def test_a_server_that_does_not_end_is_ended_with_what_it_started():
    code = USES_A_SERVER.format(waits=True)
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=BENCHMARKS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        assert process.communicate("\n", timeout=60)[0] == "result\n"


def test_a_server_does_not_outlive_what_asked_for_it():
    with started(USES_A_SERVER.format(waits=False)) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=60)[0] == ""


def test_a_row_does_not_outlive_the_run():
    code = (
        "import sys, time, serving\n"
        "def slow(): print('ready', flush=True); time.sleep(600)\n"
        "serving.measure = slow\n"
        "serving.alone()"
    )
    with started(code) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGKILL)
        assert process.communicate(timeout=60)[0] == ""
