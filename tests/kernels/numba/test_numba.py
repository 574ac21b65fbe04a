"""What is special to the numba back-end: shares of slabs, element types, head sizes, its exponential."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from numba import njit

from moa.kernels import backend
from moa.kernels.call import Reading
from moa.kernels.numba import operations as ours
from moa.kernels.numba import read as reads
from moa.kernels.numba.decode import kernel
from moa.kernels.numba.online import exp
from moa.kernels.numba.vectors import FAST
from moa.kernels.softmax import Softmax
from moa.plans.errors import Unsupported
from moa.plans.reading import summary_bytes
from moa.runtime.attention import Backends

SCALE = 0.3


@pytest.fixture
def rules(kit):
    """A constant window, a growing one, two alike, with sinks of 0, 1 and 2 blocks."""
    return kit.Rules(np.array([64, 0, 128, 128]), np.array([200, 0, 256, 256]), np.array([0, 100, 30, 30]))


@pytest.mark.parametrize("shares", [1, 2, 3, 50, 1000])
def test_any_number_of_shares_gives_the_same(kit, rules, monkeypatch, shares):
    """Also more threads than slabs, and than blocks."""
    monkeypatch.setattr(ours, "_shares", lambda: shares)
    whole, past, total = kit.text([500, 300], 12, 4, 8, 0), [460, 260], [470, 261]
    store = kit.store_of(whole, rules, past)
    out = ours.decode(**whole.new(past, total), seen=rules.seen(600), store=store, softmax=Softmax(SCALE))
    expected = torch.cat([x[p:t] for x, p, t in zip(kit.oracle(whole, rules, SCALE), past, total, strict=True)])
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_input_gives_the_same_bits(kit, rules, threads):
    """With threads that run at once, where numba has them, in whichever order they end."""
    whole, before, outs = kit.text([500, 300], 12, 4, 8, 0), torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for _ in range(20):
            store = kit.store_of(whole, rules, [460, 260])
            tokens = whole.new([460, 260], [470, 261])
            outs.append(ours.decode(**tokens, seen=rules.seen(600), store=store, softmax=Softmax(SCALE)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize(("heads", "size"), [(1, 80), (2, 128), (7, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_element_types_and_shapes(kit, rules, dtype, heads, size):
    whole = kit.text([500, 70], 4 * heads, 4, size, 0)
    past, total = [490, 60], [500, 70]
    expected = torch.cat([x[p:] for x, p in zip(kit.oracle(whole, rules, SCALE), past, strict=True)])
    store = kit.store_of(whole, rules, past, dtype=dtype)
    out = ours.decode(**whole.new(past, total, dtype), seen=rules.seen(500), store=store, softmax=Softmax(SCALE))
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=kit.rounding(whole, SCALE, dtype), rtol=0)


def test_queries_and_keys_may_lie_head_by_head(kit, rules):
    """As models hand them over; and nothing of the call is written to but the store."""
    whole = kit.text([300], 12, 4, 8, 0)
    store, tokens = kit.store_of(whole, rules, [290]), whole.new([290], [300])
    tokens |= {n: tokens[n].transpose(0, 1).contiguous().transpose(0, 1) for n in "qkv"}
    given = {n: tokens[n] for n in "qkv"} | {"cu_seqlens": tokens["batch"].cu_seqlens, "past": tokens["batch"].past}
    before = {n: x.clone() for n, x in given.items()}
    out = ours.decode(**tokens, seen=rules.seen(300), store=store, softmax=Softmax(SCALE))
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE)[0][290:], atol=1e-10, rtol=0)
    assert all(torch.equal(given[n], x) for n, x in before.items())


def test_scores_far_apart_and_equal(kit):
    """One key takes all weight, in whichever block it lies; and no weight is lost where all are alike."""
    rules = kit.Rules(np.array([64]), np.array([0]), np.array([256]))
    for where in (0, 70, 130):
        whole = kit.text([200], 1, 1, 8, 0)
        whole.k[0][:, 0] = 0
        whole.k[0][where, 0], whole.q[0][199, 0] = 400.0, 1.0
        store = kit.store_of(whole, rules, [199], dtype=torch.float32)
        out = ours.decode(
            **whole.new([199], [200], torch.float32), seen=rules.seen(200), store=store, softmax=Softmax(1.0)
        )
        torch.testing.assert_close(out[0, 0].double(), whole.v[0][where, 0], atol=1e-6, rtol=0)
    whole.k[0][:] = 0
    whole.v[0][:] = 1
    store = kit.store_of(whole, rules, [199], dtype=torch.float32)
    out = ours.decode(**whole.new([199], [200], torch.float32), seen=rules.seen(200), store=store, softmax=Softmax(1.0))
    torch.testing.assert_close(out, torch.ones_like(out), atol=200 * 2.0**-24, rtol=0)


def test_exponential_is_exact_to_two_units_in_the_last_place():
    @njit(fastmath=set(FAST))
    def all_of(x):
        out = np.empty_like(x)
        for i in range(len(x)):
            out[i] = exp(x[i])
        return out

    x = np.linspace(-86.9, 0, 1_000_003, dtype=np.float32)
    found, true = all_of(x).astype(np.float64), np.exp(x.astype(np.float64))
    assert (np.abs(found - true) <= 2 * np.spacing(true.astype(np.float32))).all()
    assert all_of(np.array([0, -1e4, -1e30], np.float32)).tolist() == [1.0, *2 * [float(all_of(np.float32([-87]))[0])]]
    assert all_of(np.float32([-87]))[0] < 2e-38


@pytest.mark.parametrize("modified", [False, True])
def test_ready_compiles_what_the_first_step_needs(kit, rules, monkeypatch, modified):
    made = []
    ours._take_one.cache_clear()
    monkeypatch.setattr(ours, "_shares", lambda: 2)
    monkeypatch.setattr(ours, "kernel", lambda *shape: made.append(shape) or kernel(*shape))
    ours.warm_up(3, 8, torch.float64, modified, modified)
    softmax = Softmax(SCALE, 3.0, torch.randn(12).double()) if modified else Softmax(SCALE)
    whole = kit.text([5], 12, 4, 8, 0)
    shape = 3, 8, "float64", True, modified, modified
    signatures = list(kernel(*shape).signatures)
    ours.decode(**whole.new([3], [5]), seen=rules.seen(5), store=kit.store_of(whole, rules, [3]), softmax=softmax)
    assert made == 2 * [shape]
    assert list(kernel(*shape).signatures) == signatures
    ours.warm_up(3, 8, torch.float8_e5m2)
    assert len(made) == 2


def test_ready_compiles_what_the_first_read_needs(kit, monkeypatch):
    made = []
    ours._take_one.cache_clear()
    monkeypatch.setattr(ours, "_shares", lambda: 1)
    ours.warm_up(3, 16, torch.float64, reads=True)
    compiled = reads.kernel(3, 16, "float64", False, False, False)
    signatures = list(compiled.signatures)
    assert len(signatures) == 1
    whole, rules = kit.text([301], 6, 2, 16, 0), kit.Rules(np.array([64, 64]), np.array([0, 0]), np.array([256, 256]))
    store = kit.store_of(whole, rules, [300])
    store.summaries = torch.zeros(len(store.k) // 64, 20 * summary_bytes(16), dtype=torch.uint8)
    reading = Reading(torch.tensor([32, 32]).int(), torch.tensor([16, 16]).int())
    monkeypatch.setattr(ours, "decode", lambda *_, **__: made.append("decode"))
    ours.read(**whole.new([300], [301]), seen=rules.seen(301), reading=reading, store=store, softmax=Softmax(SCALE))
    assert not made
    assert list(compiled.signatures) == signatures


def test_a_sequence_without_a_new_token_is_refused_and_nothing_written(kit, rules):
    whole = kit.text([5, 5], 4, 4, 8, 0)
    store = kit.store_of(whole, rules, [3, 5], fill=0)
    before = store.k.clone()
    with pytest.raises(RuntimeError, match="a new token of every sequence"):
        ours.decode(**whole.new([3, 5], [5, 5]), seen=rules.seen(5), store=store, softmax=Softmax(SCALE))
    torch.testing.assert_close(store.k, before, atol=0, rtol=0, equal_nan=True)


def test_numbers_of_threads_stay_the_callers():
    """Also torch's, which numba changes when its threads start: so in a process of its own."""
    code = (
        "import numba, torch\n"
        "from moa.kernels.backend import load\n"
        "from moa.bench.selftest import deviation\n"
        "torch.set_num_threads(3)\n"
        "assert deviation(load('numba')) < 1e-4\n"
        "assert torch.get_num_threads() == 3\n"
        "assert numba.get_num_threads() == numba.config.NUMBA_NUM_THREADS\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_a_folder_for_code_it_is_compiled_anew(kit, rules, monkeypatch):
    """And in every shape only the loop over threads is parallel: numba may empty the options that it is given."""
    made = []

    def refuses(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: made.append(njit(**options)(function)) or made[-1]

    monkeypatch.setattr("moa.kernels.numba.decode.njit", refuses)
    monkeypatch.setattr(ours, "kernel", kernel.__wrapped__)
    monkeypatch.setattr(ours, "_shares", lambda: 2)
    whole = kit.text([5], 4, 4, 8, 0)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, kit.rounding(whole, SCALE, torch.float32))):
        store = kit.store_of(whole, rules, [3], dtype=dtype)
        out = ours.decode(**whole.new([3], [5], dtype), seen=rules.seen(5), store=store, softmax=Softmax(SCALE))
        torch.testing.assert_close(out.double(), kit.oracle(whole, rules, SCALE)[0][3:], atol=bound, rtol=0)
        (compiled,) = made[-1].overloads.values()
        assert compiled.metadata["parfor_diagnostics"].count_parfors() == 1
    assert len(made) == 2


def test_without_numba_the_back_end_is_refused_and_not_picked(monkeypatch):
    monkeypatch.setattr("moa.kernels.spec.find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=r"pip install 'moa-attention\[cpu\]'"):
        backend.load("numba")
    assert backend.pick("cpu") == "torch"


def test_a_numba_that_cannot_be_imported_is_refused(monkeypatch):
    def fails(name):
        raise ImportError("Numba needs NumPy 2.3 or less")

    monkeypatch.setattr(backend, "import_module", fails)
    with pytest.raises(Unsupported, match=r"choose torch: Numba needs NumPy"):
        backend.load("numba")


def test_it_is_refused_on_another_device():
    with pytest.raises(Unsupported, match="for CPUs, the model is on cuda"):
        Backends("numba").on(torch.device("cuda"))


def test_a_copied_store_is_read_and_written_by_itself(kit, rules):
    whole = kit.text([300], 12, 4, 8, 0)
    store, seen, tokens = kit.store_of(whole, rules, [290]), rules.seen(300), whole.new([290], [291])
    ours.decode(**tokens, seen=seen, store=store, softmax=Softmax(SCALE))
    copied, before = copy.deepcopy(store), store.k.clone()
    assert copied.scratch["arrays"] is None  # no second copy of the keys
    out = ours.decode(**whole.new([291], [300]), seen=seen, store=copied, softmax=Softmax(SCALE))
    torch.testing.assert_close(out, kit.oracle(whole, rules, SCALE)[0][291:], atol=1e-10, rtol=0)
    torch.testing.assert_close(store.k, before, atol=0, rtol=0, equal_nan=True)
    again = ours.decode(**whole.new([291], [300]), seen=seen, store=store, softmax=Softmax(SCALE))
    assert torch.equal(again, out)
