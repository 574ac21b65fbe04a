"""The numba back-end after a fork, and called from several threads.

A fault here kills or hangs its process, so one process that has never computed makes a model, and forks for each case.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

CODE = """
import json, os, sys, threading, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = ["tests/moa", "tests/families"]
import numba, torch
from conftest import make_model, make_plan
import moa

torch.set_num_threads(2)
model = make_model(dtype=torch.float32)
plan, ids = make_plan(model, 1), torch.arange(1, 41)[None]


def generate():
    try:
        return model.generate(ids, max_new_tokens=4, do_sample=False)[0, 40:].tolist()
    except moa.Unsupported as error:
        return f"refused: {error}"


def fork(work):
    '''What `work` returns in a forked process, or how that ended.'''
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            found = work()
        except BaseException as error:
            found = repr(error)
        os.write(write, json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    for _ in range(400):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return json.loads(os.read(read, 9999)) if status == 0 else f"ended with status {status}"
        time.sleep(0.1)
    os.kill(child, 9)
    return "hangs"


def in_thread(*works):
    found = [None] * len(works)
    def run(i, work):
        found[i] = work()
    threads = [threading.Thread(target=run, args=each) for each in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def one_thread():
    torch.set_num_threads(1)
    return generate()



def computed_before(backend):
    moa.apply(model, plan, backend)
    return [generate(), fork(generate), fork(one_thread), fork(lambda: in_thread(generate)[0]), generate()]


def computed_in_another_thread():
    moa.apply(model, plan, "numba")
    return [*in_thread(generate), fork(generate)]


def several_threads(layer):
    numba.config.THREADING_LAYER = layer
    moa.apply(model, plan, "numba")
    return in_thread(*4 * [lambda: [generate() for _ in range(15)]]) + [numba.threading_layer()]


applied = moa.apply(model, plan, "numba")
found = {"applied before": fork(generate)}
applied.remove()
for name, work in {
    "computed before, numba": lambda: computed_before("numba"),
    "computed before, torch": lambda: computed_before("torch"),
    "computed in another thread": computed_in_another_thread,
    "threads, omp": lambda: several_threads("omp"),
    "threads, workqueue": lambda: several_threads("workqueue"),
}.items():
    found[name] = fork(work)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=500,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture
def tokens(found):
    assert isinstance(found["applied before"], list), found["applied before"]
    return found["applied before"]


def test_a_plan_applied_before_a_fork(tokens):
    """As a server that loads its model first and forks its workers then."""
    assert len(tokens) == 4


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_a_fork_after_computing_is_refused_before_it_hangs_or_dies(found, tokens, backend):
    """With one thread it goes on, and where no thread was lost; so does the process that forked."""
    before, refused, alone, anew, after = found[f"computed before, {backend}"]
    assert before == alone == after == tokens
    assert "or call torch.set_num_threads(1) here" in refused
    assert anew == (tokens if backend == "torch" else refused)


def test_numba_started_by_another_thread_than_the_one_that_forks(found, tokens):
    before, refused = found["computed in another thread"]
    assert before == tokens
    assert "or call torch.set_num_threads(1) here" in refused


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_callers_in_several_threads(found, tokens, layer):
    """numba's workqueue aborts a process where two of them enter it at once."""
    assert found[f"threads, {layer}"] == [*4 * [15 * [tokens]], layer]
