"""Back-ends that read some pages only: the keys that the definition chooses, and the attention over them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moa.kernels import backend
from moa.kernels.paged.selection import best
from moa.kernels.registry import BACKENDS
from moa.kernels.softmax import Softmax

SCALE = 0.3
GARBAGE = {"reference": float("nan"), "torch": 1e3, "numba": float("nan")}
NAMES = [spec.name for spec in BACKENDS if "read" in spec.can and spec.takes("cpu")]
each = pytest.mark.parametrize("name", NAMES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@each
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_rows_read_what_the_definition_chooses(kit, paged, name, data):
    """Ragged texts and new tokens, none too; rings that wrap; sinks in the floor; every unwanted slot NaN."""
    sequences = data.draw(st.integers(1, 3))
    rules = data.draw(kit.rule_sets(groups=2))
    past = data.draw(st.lists(st.sampled_from([600, 0, 5, 150, 333, 480, 700]), min_size=sequences, max_size=sequences))
    new = data.draw(st.lists(st.sampled_from([0, 1, 1, 2, 7, 16]), min_size=sequences, max_size=sequences))
    reading = paged.reading(*(
        (data.draw(st.sampled_from([32, 8, 40, 64, 128, 255, 256])), data.draw(st.sampled_from([16, int(sink)])))
        for sink in rules.sink
    ))  # fmt: skip
    total = np.add(past, new).tolist()
    whole = kit.text(total, 6, 2, 16, data.draw(st.integers(0, 99)))
    store = paged.summarised(kit, whole, rules, past, spare=data.draw(st.integers(0, 2)), fill=GARBAGE[name])
    out = backend.load(name).read(
        **whole.new(past, total), seen=rules.seen(max(total)), reading=reading, store=store, softmax=Softmax(SCALE)
    )
    expected, _ = paged.rows(whole, rules, reading, past, total, SCALE) if any(new) else (out, None)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


@each
@pytest.mark.parametrize(("heads", "size"), [(1, 16), (3, 64), (4, 80), (8, 256)])
def test_shapes(kit, paged, name, heads, size):
    """Several new tokens, some of which see pages that are not full at their own length."""
    rules = kit.Rules(np.array([64, 128]), np.array([10**6, 300]), np.array([0, 0]))
    reading, past, total = paged.reading((32, 16), (40, 16)), [500, 311], [507, 312]
    whole = kit.text(total, 2 * heads, 2, size, size + heads)
    store = paged.summarised(kit, whole, rules, past, fill=GARBAGE[name])
    out = backend.load(name).read(
        **whole.new(past, total), seen=rules.seen(600), reading=reading, store=store, softmax=Softmax(SCALE)
    )
    expected, read = paged.rows(whole, rules, reading, past, total, SCALE)
    assert 40 < len(read[0]) < 60  # few pages of few coarse ones
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=0)


@each
@dtypes
def test_element_types(kit, paged, name, dtype):
    """The pages are the same, and the summaries of those that the new tokens fill: rows come in turns of 7 and 1."""
    rules = kit.Rules(np.array([64, 64]), np.array([10**6, 200]), np.array([0, 0]))
    reading, at, run, softmax = paged.reading((40, 16), (90, 64)), [380, 300], backend.load(name), Softmax(SCALE)
    whole = kit.text([436, 330], 6, 2, 16, 5)
    for n in "qkv":
        setattr(whole, n, [x.to(dtype).double() for x in getattr(whole, n)])
    store = paged.summarised(kit, whole, rules, at, fill=GARBAGE[name], dtype=dtype)
    for _ in range(7):
        end = [at[0] + 7, at[1] + 1]
        tokens = whole.new(at, end, dtype)
        out = run.read(**tokens, seen=rules.seen(500), reading=reading, store=store, softmax=softmax)
        expected, _ = paged.rows(whole, rules, reading, at, end, SCALE)
        bound = kit.half_rounding(whole, SCALE, dtype)
        torch.testing.assert_close(out.double(), expected, atol=bound, rtol=0)
        at = end
    wanted = paged.summarised(kit, whole, rules, at, dtype=dtype)
    for s, g in ((0, 0), (1, 0)):  # the slabs that hold all
        first = [int(x.base[s, g]) // 64 for x in (store, wanted)]
        found, true = (x.summaries[i : i + at[s] // 64] for x, i in zip((store, wanted), first, strict=True))
        assert torch.equal(found, true)


@each
@dtypes
@pytest.mark.parametrize("share", [256, 200, 1])
def test_rows_that_read_all_give_what_decode_gives(kit, paged, name, dtype, share):
    """Bit for bit: everything is asked for, what is kept fits into the bytes, or lies in the floor."""
    kept = 10**6 if share == 256 else 0
    rules = kit.Rules(np.array([64, 64]), np.array([kept, 0]), np.array([0, 0]))
    past, total = ([500, 290], [508, 291]) if share > 1 else ([90, 60], [91, 64])
    reading, softmax = paged.reading((share, 64), (share, 64)), Softmax(SCALE)
    whole, run, seen = kit.text(total, 6, 2, 16, 0), backend.load(name), rules.seen(600)
    stores = [paged.summarised(kit, whole, rules, past, fill=GARBAGE[name], dtype=dtype) for _ in range(2)]
    tokens = whole.new(past, total, dtype)
    expected = run.decode(**tokens, seen=seen, store=stores[0], softmax=softmax)
    out = run.read(**tokens, seen=seen, reading=reading, store=stores[1], softmax=softmax)
    assert torch.equal(out, expected)
    assert torch.equal(stores[1].k.nan_to_num(), stores[0].k.nan_to_num())


def test_of_equal_pages_the_earlier_is_chosen():
    assert best(torch.zeros(2, 9), 4).tolist() == [0, 1, 2, 3]
    assert best(torch.tensor([[0.0, 3, 1, 3, 3, -1]]), 2).tolist() == [1, 3]
    assert best(torch.tensor([[0.0, -200, -100, -300]]), 3).tolist() == [0, 1, 2]
