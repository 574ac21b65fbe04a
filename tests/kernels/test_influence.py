"""The influence backward against autograd and against cuts made one by one."""

import pytest
import torch
from torch import Tensor

from moa.kernels.call import Visibility
from moa.kernels.influence import StaticSink, Tile, influence_backward
from moa.kernels.sink_contents import sinks
from moa.kernels.softmax import Softmax
from moa.profiler.estimators import ESTIMATORS, fisher

SHAPES = [(1, 1, 1, 8), (63, 2, 1, 8), (64, 4, 4, 16), (65, 3, 1, 8), (111, 6, 2, 16), (333, 8, 1, 8)]


PLAIN = Softmax(0.3)
LOGITS = torch.tensor([0.0, 3.0, -2.0, 5.0, 4.0, 1.0, 2.0, -1.0], dtype=torch.float64)


def tensors(n: int, heads: int, groups: int, dim: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(n)
    return [torch.randn(h, n, dim, generator=g, dtype=torch.float64) for h in (heads, groups, groups, heads)]


def eager(q: Tensor, k: Tensor, v: Tensor, keep: Tensor, softmax: Softmax = PLAIN) -> tuple[Tensor, Tensor]:
    """Weights and output of masked attention; `keep` is [N, N] or [heads, N, N]."""
    heads = q.shape[0] // k.shape[0]
    scores = q @ k.repeat_interleave(heads, 0).mT * softmax.scale
    if softmax.cap is not None:
        scores = softmax.cap * (scores / softmax.cap).tanh()
    powers = scores.masked_fill(~keep, -torch.inf).exp()
    total = powers.sum(-1, keepdim=True)
    a = powers / (total if softmax.sink_logits is None else total + softmax.sink_logits.exp()[:, None, None])
    return a, a @ v.repeat_interleave(heads, 0)


@pytest.mark.parametrize(("n", "heads", "groups", "dim"), SHAPES)
@pytest.mark.parametrize("modified", [False, True])
def test_gradients_are_those_of_autograd(n: int, heads: int, groups: int, dim: int, modified: bool) -> None:
    q, k, v, dout = tensors(n, heads, groups, dim)
    softmax = Softmax(0.3, 1.5, LOGITS[:heads]) if modified else PLAIN
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    _, out = eager(*leaves, torch.ones(n, n, dtype=torch.bool).tril(), softmax)
    out.backward(dout)
    *grads, _ = influence_backward(
        q, k, v, dout, softmax=softmax, estimator=fisher, sinks=sinks("first", 64), bin_size=64
    )
    for mine, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-10, atol=1e-10)


def test_gradients_under_rules_are_those_of_autograd_and_harm_is_from_full_attention() -> None:
    n, heads, groups, dim = 333, 4, 2, 8
    q, k, v, dout = tensors(n, heads, groups, dim)
    sink = torch.tensor([64, 128])
    first = torch.stack([(torch.arange(6) - 1).clamp(min=1), (torch.arange(6) - 2).clamp(min=2)])
    at = torch.arange(n)
    kept = (at < sink[:, None, None]) | (at // 64 >= first[:, at // 64, None])
    mask = (torch.ones(n, n, dtype=torch.bool).tril() & kept).repeat_interleave(heads // groups, 0)
    assert (mask.sum((1, 2)) < n * (n + 1) // 2).all()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    _, out = eager(*leaves, mask)
    out.backward(dout)
    call = {"softmax": Softmax(0.3), "estimator": fisher, "sinks": sinks("first", 64), "bin_size": 64}
    *grads, table = influence_backward(q, k, v, dout, **call, seen=Visibility(first, sink))
    for mine, leaf in zip(grads, leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, rtol=1e-10, atol=1e-10)
    assert torch.equal(table, influence_backward(q, k, v, dout, **call)[3])


def most_unlike(k: Tensor, sink: int, edge: int) -> Tensor:
    """What a keydiff sink holds of keys [kv_heads, N, D] once all before `edge` left the window: bool [kv_heads, N]."""
    groups, n, size = k.shape
    slow = k[:, :, [i for i in range(size) if i % (size // 2) >= size // 4]]
    held = torch.zeros(groups, n, dtype=torch.bool)
    for g in range(groups):
        score = [torch.inf] * 4
        for j in range(4, edge):
            block = slow[g, j // 64 * 64 : j // 64 * 64 + 64]
            mean = (block / block.norm(dim=1, keepdim=True)).mean(0)
            score.append(-float(slow[g, j] @ mean / (slow[g, j].norm() * mean.norm())))
        held[g, sorted(range(edge), key=lambda j: (-score[j], j))[:sink]] = True
    return held


def cut_effects(
    q: Tensor, k: Tensor, v: Tensor, dout: Tensor, sink: int, edge: int, keydiff: bool = False, softmax: Softmax = PLAIN
) -> dict[str, Tensor]:
    """Every estimator from its definition, entry by entry, for one cut: [heads, N]."""
    n, heads = q.shape[1], q.shape[0] // k.shape[0]
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    columns = torch.arange(n)
    keep = causal & ((columns < sink) | (columns >= edge))
    if keydiff and edge:
        held = most_unlike(k, sink, edge).repeat_interleave(heads, 0)
        keep = causal & (held[:, None] | (columns >= edge))
    a, out = eager(q, k, v, causal, softmax)
    _, cut = eager(q, k, v, keep, softmax)
    dp = dout @ v.repeat_interleave(heads, 0).mT
    entries = torch.zeros_like(a)
    for j in range(n):  # mask one key at a time and renormalise
        one = a.clone()
        one[..., j] = 0
        rows = one.sum(-1, keepdim=True) + (1 - a.sum(-1, keepdim=True) if softmax.sink_logits is not None else 0)
        change = torch.where(rows > 0, one / rows, 0.0) - a
        entries[..., j] = (change * dp).sum(-1)
    dropped = causal & ~keep
    return {
        "fisher": ((cut - out) * dout).sum(-1),
        "effect": ((cut - out) * dout).sum(-1),
        "first-order": (entries * dropped).sum(-1),
        "first-order-abs": (entries.abs() * dropped).sum(-1),
        "mass": (a * dropped).sum(-1),
    }


def check_table(name: str, sink: int, bin_size: int, keydiff: bool, softmax: Softmax) -> None:
    n, heads, groups = 333, 4, 2
    q, k, v, dout = tensors(n, heads, groups, 8)
    *_, table = influence_backward(
        q, k, v, dout, softmax=softmax, estimator=ESTIMATORS[name], bin_size=bin_size,
        sinks=sinks("first", 64) + sinks("keydiff" if keydiff else "first", sink),
    )  # fmt: skip
    count = -(-n // bin_size)
    assert table.shape == (2, groups, count, count)
    for edge in range(count):
        at = 0 if edge * bin_size <= sink else edge * bin_size
        effect = cut_effects(q, k, v, dout, sink, at, keydiff, softmax)[name]
        effect = effect.unflatten(0, (groups, -1)).sum(1)  # the heads of a group act together
        effect = effect.square() if name == "fisher" else effect
        for row in range(edge, count):
            wanted = effect[:, row * bin_size : (row + 1) * bin_size].sum(1).float()
            torch.testing.assert_close(table[1, :, row, edge], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize(("sink", "bin_size"), [(64, 64), (128, 64), (64, 128)])
@pytest.mark.parametrize("keydiff", [False, True])
def test_table_is_the_effect_of_every_cut(name: str, sink: int, bin_size: int, keydiff: bool) -> None:
    check_table(name, sink, bin_size, keydiff, PLAIN)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_table_of_scores_that_are_capped_beside_learned_sinks(name: str) -> None:
    check_table(name, 64, 64, True, Softmax(0.3, 1.5, LOGITS[:4]))


def test_table_of_cuts_that_keep_little_mass() -> None:
    """Large weights lie on few keys; what is left of the others is renormalised all the same."""
    check_table("fisher", 64, 64, False, Softmax(8.0))


def test_a_cut_that_keeps_no_mass_removes_the_output() -> None:
    a, dp = torch.zeros(1, 1, 192), torch.ones(1, 1, 192)
    a[..., 80] = 1.0
    harm = fisher(Tile(a, dp, (a * dp).sum(-1, keepdim=True), (StaticSink(64),), 64))
    assert harm[0, 0].tolist() == [0.0, 0.0, 1.0]
