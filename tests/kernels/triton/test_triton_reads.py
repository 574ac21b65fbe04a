"""Reads of back-end `triton` under the interpreter: the same bytes, the same pages, the attention over them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from moa.kernels import reference
from moa.kernels.paged.summaries import update
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities
from moa.kernels.triton import operations as kernels
from moa.kernels.triton import read as reads
from moa.kernels.triton.budget import budget
from moa.kernels.triton.page_choice import page_choice_kernel
from moa.plans.reading import choices, fetched

pytestmark = pytest.mark.usefixtures("nothing_is_zero_by_luck")
SCALE = 0.3
CALLS = [[30, 1], [5, 9], [1, 1], [1, 2], [3, 0], [16, 1], [70, 230], [1, 1]]


@pytest.mark.parametrize(("size", "dtype"), [(16, torch.float32), (64, torch.bfloat16), (80, torch.float16)])
def test_summaries_are_the_reference_s(kit: Any, size: int, dtype: torch.dtype) -> None:
    """Every byte, in calls of all kinds, over rings that wrap within a call and between calls."""
    rules = kit.Rules(np.array([64, 0]), np.array([64, 64]), np.array([0, 0]))
    lengths = np.sum(CALLS, 0)
    keys, seen = kit.text(lengths.tolist(), 2, 2, size, 0), rules.seen(400)
    for x in keys.k if dtype == torch.float32 else ():  # the order of sums decides what is left of these
        x[0::4] += 2.0**27
        x[2::4] -= 2.0**27
    mine, theirs = (allocate(capacities(rules.reach, lengths), size, dtype, "cpu", summaries=True) for _ in range(2))
    for store in (mine, theirs):
        store.k.fill_(torch.nan)
        store.summaries.fill_(255)
    at = np.zeros(2, int)
    for call in CALLS:
        new = keys.new(at.tolist(), (at + call).tolist(), dtype)
        del new["q"]
        kernels.append(mine, **new, seen=seen)
        reference.append(theirs, **new, seen=seen)
        update(theirs, batch=new["batch"], seen=seen)
        assert torch.equal(mine.summaries, theirs.summaries), call
        at += call
    assert (mine.summaries != 255).float().mean() > 0.5


@triton.jit
def budget_kernel(share, given, shift, length, out, D: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    kept, among, fetch = budget(
        tl.load(share + at), tl.load(given + at), tl.load(shift + at), tl.load(length + at).to(tl.int64), D
    )
    tl.store(out + at, kept)
    tl.store(out + SIZE + at, among)
    tl.store(out + 2 * SIZE + at, fetch)


@pytest.mark.parametrize("size", [16, 128])
def test_the_budget_is_that_of_the_definition(size: int) -> None:
    """At short and long texts, among them such as do not fit into 32 bits times a share."""
    rng = np.random.default_rng(size)
    length = np.concatenate([np.arange(1, 2049), rng.integers(1, 1 << 26, 2048)])
    share, given = rng.integers(1, 257, 4096), rng.choice([16, 64, 128], 4096)
    shift = (length // 64 * rng.choice([0.0, 0.5, 0.9], 4096)).astype(np.int64)
    out = torch.empty(3, 4096, dtype=torch.int32)
    budget_kernel[(1,)](*(torch.from_numpy(x).int() for x in (share, given, shift, length)), out, D=size, SIZE=4096)
    kept = length - 64 * shift
    expected = np.stack([kept, choices(kept, given), fetched(share, length, kept, given, size)])
    assert (out.numpy() == expected).all()
    assert ((expected[2] > 0) & (expected[2] < 4 * expected[1])).sum() > 500


@pytest.mark.parametrize("values", [1, 3, 1000])
@pytest.mark.parametrize(("n", "share"), [(1100, 40), (4090, 24)])
def test_of_equal_pages_the_earlier_is_chosen(paged: Any, values: int, n: int, share: int) -> None:
    """Few scores over and over, so that only some of those that are equal to the last one are chosen."""
    heads, size, room, given = 3, 16, 1024, 64
    among = int(choices(n, given))
    wanted = 2 * int(fetched(share, n, n, given, size))
    assert 0 < wanted < among
    rng = np.random.default_rng(values)
    scores = (rng.integers(-values, values, (room, 1)) / 8 + [0, 3, -5]).astype(np.float32)  # in powers of 2
    scores[::5] -= 200
    own = scores[:among].astype(np.float64) * np.log(2)
    expected = paged.best(own, wanted)
    total = np.exp(np.maximum(own - own.max(0), -80)).sum(0)
    wide = [torch.from_numpy(x.astype(np.float32)) for x in (scores, scores[:among].max(0), total)]
    chosen = torch.full((room,), -1, dtype=torch.int32)
    one = {"first": torch.zeros(1, 100, dtype=torch.int32), "sink": torch.zeros(1, dtype=torch.int32)}
    tables = [
        *one.values(), torch.tensor([share], dtype=torch.int32), torch.tensor([given], dtype=torch.int32),
        torch.zeros(1, 1, dtype=torch.int64), torch.tensor([[64 * 100]], dtype=torch.int32),
        torch.tensor([0, 1], dtype=torch.int32), torch.tensor([n - 1]),
    ]  # fmt: skip
    page_choice_kernel[(1, 1)](
        *wide, None, chosen, *tables, 100, 1, 1, 0, room, 1, HEADS=heads, D=size, AT_ONCE=256, UP=4, SIZE=32
    )
    pages = given // 16 + np.array(expected)
    assert chosen[:wanted].tolist() == (5 * (pages // 4) + 1 + pages % 4).tolist()
    assert (chosen[wanted:] == -1).all()


CASES = {
    "a step": (3, 16, torch.float32, [500, 311, 70], [1, 1, 1], [(32, 16), (40, 128)]),
    "drafts": (4, 16, torch.float32, [420, 100, 0, 20], [3, 16, 2, 0], [(40, 16), (64, 16)]),
    "another group reads all": (1, 64, torch.bfloat16, [380, 300], [1, 3], [(40, 16), (256, 16)]),
    "odd channels": (4, 80, torch.float16, [447, 64], [2, 1], [(32, 64), (8, 16)]),
    "many heads": (20, 16, torch.float32, [450], [1], [(40, 16), (40, 16)]),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_read_what_the_definition_chooses(kit: Any, paged: Any, case: str) -> None:
    """Ragged texts and new tokens, none too; rings that wrap; sinks in the floor; every unwanted slot NaN."""
    heads, size, dtype, past, new, groups = CASES[case]
    rules = kit.Rules(np.array([64, 128]), np.array([10**6, 300]), np.array([0, 0]))
    total, reading = np.add(past, new).tolist(), paged.reading(*groups)
    whole = kit.text(total, 2 * heads, 2, size, size + heads)
    for name in "qkv":
        setattr(whole, name, [x.to(dtype).double() for x in getattr(whole, name)])
    store = paged.summarised(kit, whole, rules, past, fill=torch.nan, dtype=dtype)
    new_tokens = whole.new(past, total, dtype)
    out = kernels.read(**new_tokens, seen=rules.seen(max(total)), reading=reading, store=store, softmax=Softmax(SCALE))
    expected, read = paged.rows(whole, rules, reading, past, total, SCALE)
    torch.testing.assert_close(out.double(), expected, atol=kit.half_rounding(whole, SCALE, dtype), rtol=0)
    assert len(read[0]) < 0.6 * past[0]
    wanted = paged.summarised(kit, whole, rules, total, dtype=dtype)
    at, blocks = (int(x.base[0, 0]) // 64 for x in (store, wanted)), total[0] // 64
    found, true = (x.summaries[i : i + blocks] for x, i in zip((store, wanted), at, strict=True))
    assert torch.equal(found, true)


@pytest.mark.parametrize("share", [256, 200, 1])
def test_rows_that_read_all_give_what_decode_gives(kit: Any, paged: Any, share: int) -> None:
    """Bit for bit: everything is asked for, what is kept fits into the bytes, or lies in the floor."""
    kept = 10**6 if share == 256 else 0
    rules = kit.Rules(np.array([64, 64]), np.array([kept, 0]), np.array([0, 0]))
    past, total = ([500, 290], [508, 291]) if share > 1 else ([90, 60], [91, 64])
    reading, softmax = paged.reading((share, 64), (share, 64)), Softmax(SCALE)
    whole, seen = kit.text(total, 6, 2, 16, 0), rules.seen(600)
    stores = [paged.summarised(kit, whole, rules, past, dtype=torch.bfloat16) for _ in range(2)]
    tokens = whole.new(past, total, torch.bfloat16)
    expected = kernels.decode(**tokens, seen=seen, store=stores[0], softmax=softmax)
    out = kernels.read(**tokens, seen=seen, reading=reading, store=stores[1], softmax=softmax)
    assert torch.equal(out, expected)
    for mine, theirs in zip(stores[1].contents, stores[0].contents, strict=True):
        assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())


def case(kit: Any, paged: Any) -> tuple[Any, dict[str, Any]]:
    """A store, and a call of several tokens whose rows choose."""
    rules = kit.Rules(np.array([64, 128]), np.array([10**6, 300]), np.array([0, 0]))
    past, total = [500, 311], [502, 312]
    whole = kit.text(total, 6, 2, 16, 0)
    call = whole.new(past, total, torch.float32)
    call |= {"seen": rules.seen(600), "reading": paged.reading((32, 16), (40, 16))}
    return paged.summarised(kit, whole, rules, past, dtype=torch.float32), call


def test_tokens_that_scores_have_no_room_for_follow_one_by_one(
    kit: Any, paged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, call = case(kit, paged)
    again = replace(store, k=store.k.clone(), v=store.v.clone(), summaries=store.summaries.clone(), scratch={})
    expected = kernels.read(**call, store=store, softmax=Softmax(SCALE))
    monkeypatch.setattr(reads, "WORK", 1)
    assert torch.equal(kernels.read(**call, store=again, softmax=Softmax(SCALE)), expected)


def test_caps_and_learned_sinks(kit: Any, paged: Any) -> None:
    store, call = case(kit, paged)
    softmax = Softmax(SCALE, 1.5, torch.tensor([0.0, 3.0, -2.0, 5.0, 1.0, 2.0]))
    wide = replace(store, k=store.k.double(), v=store.v.double(), summaries=store.summaries.clone(), scratch={})
    out = kernels.read(**call, store=store, softmax=softmax)
    call |= {name: call[name].double() for name in "qkv"}
    softmax = softmax._replace(sink_logits=softmax.sink_logits.double())
    torch.testing.assert_close(out.double(), reference.read(**call, store=wide, softmax=softmax), atol=1e-5, rtol=0)
