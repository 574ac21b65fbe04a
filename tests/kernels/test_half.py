"""Half precision: scores beyond float16's range, large and tiny numbers, in every call, against float64."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from moa.kernels.backend import load
from moa.kernels.call import Visibility
from moa.kernels.dispatch import attend
from moa.kernels.influence import influence_backward
from moa.kernels.keydiff.sinks import Sinks
from moa.kernels.registry import BACKENDS
from moa.kernels.sink_contents import sinks
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate, capacities
from moa.profiler.estimators import effect, fisher

HALVES = [torch.float16, torch.bfloat16]
SIZE, HEADS, GROUPS = 16, 6, 2
each = pytest.mark.parametrize("name", [spec.name for spec in BACKENDS if spec.takes("cpu")])
halves = pytest.mark.parametrize("dtype", HALVES)


@each
@halves
@pytest.mark.parametrize("scale", [SIZE**-1.0, 0.6])
@pytest.mark.parametrize("news", [[1, 1], [7, 3], [64, 64], [150, 1], [330, 250]])
def test_scores_beyond_the_range_of_float16(kit, name, dtype, scale, news):
    """Before scaling, and at the greater scale after it too; by one pass, chunks and steps of one and more tokens."""
    rules = kit.Rules(np.array([64, 128]), np.array([150, 200]), np.array([0, 30]))
    total = [330, 250]
    whole, past = kit.biased(total, HEADS, GROUPS, SIZE, dtype), np.subtract(total, news).tolist()
    expected = torch.cat([x[p:] for x, p in zip(kit.oracle(whole, rules, scale), past, strict=True)])
    backend, seen = load(name), rules.seen(max(total))
    forms = ["attend"] + ["decode"] * (max(news) <= 64)
    for form in forms:
        store = kit.store_of(whole, rules, past, fill=0, dtype=dtype) if any(past) else None
        out = getattr(backend, form)(**whole.new(past, total, dtype), seen=seen, store=store, softmax=Softmax(scale))
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), expected, atol=kit.half_rounding(whole, scale, dtype), rtol=0)


@each
@halves
def test_sinks_of_other_keys_with_such_scores(kit, name, dtype):
    """Prefill, a chunk and steps, against the reference in float64; keys are large, so cosines must not overflow."""
    rules, ends = kit.Rules(np.array([64, 64]), np.array([128, 300]), np.zeros(2, np.int64)), [330]
    whole = kit.biased(ends, HEADS, GROUPS, SIZE, dtype)
    room = capacities(rules.reach, np.array(ends))

    def run(name: str, dtype: torch.dtype) -> Tensor:
        backend, outs, past = load(name), [], 0
        sinks, store = (
            Sinks(rules.sink, ("keydiff",) * 2, rules.first_at, 1, "cpu"),
            allocate(room, SIZE, dtype, "cpu"),
        )
        for new in (200, 70, *[1] * 60):
            outs.append(
                attend(
                    **whole.new([past], [past + new], dtype), seen=rules.seen(400), store=store, sinks=sinks,
                    grown=lambda: store, softmax=Softmax(SIZE**-1.0), backend=backend,
                )
            )  # fmt: skip
            past += new
        return torch.cat(outs).double()

    torch.testing.assert_close(
        run(name, dtype), run("reference", torch.float64), atol=kit.half_rounding(whole, SIZE**-1.0, dtype), rtol=0
    )


@each
@halves
@pytest.mark.parametrize("powers", [(13, -14, 0), (-14, 13, 0), (0, 0, 13), (0, 0, -20)])
def test_numbers_near_the_ends_of_the_range_of_float16(kit, name, dtype, powers):
    """Tiny queries meet large keys and the other way round; large and tiny values."""
    rules = kit.Rules(np.array([64, 0]), np.array([150, 64]), np.array([0, 60]))
    whole = kit.text([200], HEADS, GROUPS, SIZE, 0)
    for n, power in zip("qkv", powers, strict=True):
        setattr(whole, n, [(x * 2.0**power).to(dtype).double() for x in getattr(whole, n)])
    expected = kit.oracle(whole, rules, SIZE**-0.5)[0]
    for past, form in ((0, "attend"), (199, "decode"), (190, "decode")):
        store = kit.store_of(whole, rules, [past], fill=0, dtype=dtype) if past else None
        call = {
            **whole.new([past], [200], dtype),
            "seen": rules.seen(200),
            "store": store,
            "softmax": Softmax(SIZE**-0.5),
        }
        out = getattr(load(name), form)(**call)
        torch.testing.assert_close(
            out.double(), expected[past:], atol=kit.half_rounding(whole, SIZE**-0.5, dtype), rtol=0
        )


@halves
@pytest.mark.parametrize("rules", [False, True])
def test_influence_with_such_scores(kit, dtype, rules):
    """Gradients and table, with and without rules; their own rounding aside, as exact as float32's sums."""
    whole = kit.biased([200], HEADS, GROUPS, SIZE, dtype)
    q, k, v = (getattr(whole, n)[0].transpose(0, 1) for n in "qkv")
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    seen = Visibility(torch.tensor([[0, 1, 1, 2]] * GROUPS), torch.full((GROUPS,), 64)) if rules else None
    measured = sinks("first", 64) + sinks("keydiff", 64)
    results = []
    for kind in (torch.float64, dtype):
        results.append(
            [
                influence_backward(
                    *(x.to(kind) for x in (q, k, v, dout)), softmax=Softmax(SIZE**-1.0), estimator=estimator,
                    sinks=measured, bin_size=64, seen=seen,
                )
                for estimator in (fisher, effect)
            ]
        )  # fmt: skip
    for exact, found in zip(*results, strict=True):
        for name, want, x in zip(("dq", "dk", "dv", "table"), exact, found, strict=True):
            rounding = torch.finfo(torch.float32 if name == "table" else dtype).eps
            lost = 16 * kit.half_rounding(whole, SIZE**-1.0, torch.float32)
            assert (x - want).abs().max() <= (rounding + lost) * want.abs().max(), name


@halves
def test_library_attention_of_the_dense_model_bears_such_scores(kit, dtype):
    """The profiler's forward pass uses it."""
    whole = kit.biased([200], HEADS, GROUPS, SIZE, dtype)
    dense = kit.Rules(np.array([64, 64]), np.array([0, 0]), np.array([256, 256]))
    q, k, v = (getattr(whole, n)[0].transpose(0, 1).to(dtype) for n in "qkv")
    k, v = (x.repeat_interleave(HEADS // GROUPS, 0)[None] for x in (k, v))
    out = scaled_dot_product_attention(q[None], k, v, is_causal=True, scale=SIZE**-1.0)[0].transpose(0, 1)
    expected = kit.oracle(whole, dense, SIZE**-1.0)[0]
    torch.testing.assert_close(out.double(), expected, atol=kit.half_rounding(whole, SIZE**-1.0, dtype), rtol=0)
