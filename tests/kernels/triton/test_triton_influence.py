"""The influence kernels under the interpreter, against the plain form in float64."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from moa.kernels import influence as plain
from moa.kernels.sink_contents import sinks as sinks_of
from moa.kernels.softmax import Softmax
from moa.kernels.triton.influence import forward, influence_backward

NO_MASS = 1e-30


def effect(tile: plain.Tile) -> Tensor:
    """The estimators the kernels hold, as the profiler defines them."""
    mass, kept = tile.kept(tile.a) + tile.sunk, tile.kept(tile.a * tile.dp)
    delta: Tensor = (torch.where(mass > NO_MASS, kept / mass, 0.0) - tile.d).sum(1)
    return delta


def fisher(tile: plain.Tile) -> Tensor:
    return effect(tile).square()


@pytest.fixture(autouse=True)
def nothing_is_zero_by_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: Callable[..., Tensor] = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def run(n: int, heads: int, groups: int, dim: int, dtype: torch.dtype, sinks: tuple[int, ...], bin_size: int,
        estimators: Sequence[plain.Estimator] = (fisher, effect), keydiff: tuple[int, ...] = (),
        cap: float | None = None, sunk: bool = False) -> None:  # fmt: skip
    """Error at most twice that of the plain form in the same type, plus the type's rounding of the largest value.

    In dS = A (dP - D) the two terms cancel, for a row with one key to 0: besides, float32's rounding of the largest dP.
    A soft-cap rounds scores by 4 eps of itself, so weights by twice that, and what is squared by four times that.
    """
    g = torch.Generator().manual_seed(n)
    q, k, v, dout = (torch.randn(h, n, dim, generator=g).to(dtype) for h in (heads, groups, groups, heads))
    call = {
        "softmax": Softmax(dim**-0.5, cap, 2 * torch.randn(heads, generator=g) if sunk else None),
        "sinks": sinks_of("keydiff", *keydiff) + sinks_of("first", *sinks),
        "bin_size": bin_size,
    }
    out, lse = forward(q, k, v, softmax=call["softmax"])
    dp = (dout.double() @ v.double().repeat_interleave(heads // groups, 0).mT).abs().max()
    lost = 4 * torch.finfo(torch.float32).eps * dp * dim**-0.5
    rounding = {"dq": lost * k.abs().max(), "dk": lost * q.abs().max()}
    for estimator in estimators:
        mine = influence_backward(q, k, v, out, lse, dout, **call, squared=estimator is fisher)
        exact = plain.influence_backward(q.double(), k.double(), v.double(), dout.double(), estimator=estimator, **call)
        same = plain.influence_backward(q, k, v, dout, estimator=estimator, **call)
        for name, found, theirs, want in zip(("dq", "dk", "dv", "table"), mine, same, exact, strict=True):
            assert found.shape == want.shape
            allowed = 2 * (theirs - want).abs().max() + 4 * torch.finfo(dtype).eps * want.abs().max()
            allowed += rounding.get(name, 0) + 16 * torch.finfo(torch.float32).eps * (cap or 0.0) * want.abs().max()
            error = (found - want).abs().max()
            assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize(("n", "heads", "groups"), [(1, 1, 1), (63, 3, 1), (64, 8, 2), (65, 2, 2), (111, 6, 2)])
def test_short(n: int, heads: int, groups: int) -> None:
    run(n, heads, groups, 16, torch.float32, (64,), 64)


@pytest.mark.parametrize(("sinks", "bin_size"), [((64,), 64), ((0, 64, 192), 64), ((64, 128), 128)])
def test_sinks_and_bins(sinks: tuple[int, ...], bin_size: int) -> None:
    run(270, 2, 1, 16, torch.float32, sinks, bin_size)


@pytest.mark.parametrize(
    ("keydiff", "bin_size", "groups"), [((64,), 64, 2), ((64, 128), 64, 1), ((192,), 128, 1), ((64, 128), 128, 2)]
)
def test_sinks_of_other_keys(keydiff: tuple[int, ...], bin_size: int, groups: int) -> None:
    run(270, 3 * groups, groups, 16, torch.float32, (64, 128), bin_size, keydiff=keydiff)


@pytest.mark.parametrize("cap", [None, 1.5])
def test_soft_caps_and_learned_sinks(cap: float | None) -> None:
    run(140, 3, 1, 16, torch.float32, (64,), 64, keydiff=(64,), cap=cap, sunk=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    run(150, 3, 1, 64, dtype, (64,), 64, keydiff=(64,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_beyond_the_range_of_float16(kit: SimpleNamespace, dtype: torch.dtype) -> None:
    """Their rounding in float32 aside, gradients and table are as for small scores."""
    whole = kit.biased([130], 2, 1, 16, dtype)
    q, k, v = (x[0].transpose(0, 1) for x in (whole.q, whole.k, whole.v))
    dout = torch.randn(q.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    call = {
        "softmax": Softmax(0.1),
        "sinks": sinks_of("first", 64) + sinks_of("keydiff", 64),
        "bin_size": 64,
    }
    half = [x.to(dtype) for x in (q, k, v)]
    found = influence_backward(*half, *forward(*half, softmax=Softmax(0.1)), dout, **call)
    exact = plain.influence_backward(q, k, v, dout.double(), estimator=fisher, **call)
    scores = 16 * kit.half_rounding(whole, 0.1, torch.float32)
    for mine, want in zip(found, exact, strict=True):
        assert (mine - want).abs().max() <= (4 * torch.finfo(dtype).eps + scores) * want.abs().max()


def test_offsets_beyond_32_bits(far_apart: Callable[[Tensor, int], Tensor]) -> None:
    """Heads far apart, as those of a long text are where a head's rows lie together."""
    near = [torch.randn(3, 70, 16, generator=torch.Generator().manual_seed(0)).half() for _ in range(4)]
    results = []
    for q, k, v, dout in (near, [far_apart(x, 0) for x in near]):
        out, lse = forward(q, k, v, softmax=Softmax(0.25))
        results.append(
            influence_backward(q, k, v, out, lse, dout, softmax=Softmax(0.25), sinks=sinks_of("first", 0), bin_size=64)
        )
    for found, want in zip(results[1], results[0], strict=True):
        assert torch.equal(found, want)


def test_a_cut_that_keeps_no_mass_removes_the_output() -> None:
    n, dim = 192, 16
    q, k, v, dout = (torch.zeros(1, n, dim) for _ in range(4))
    q[..., 0], k[:, 70, 0], v[:, 70, 0], dout[:, 191, 0] = 1.0, 200.0, 1.0, 1.0  # all mass on key 70, effect 1
    out, lse = forward(q, k, v, softmax=Softmax(1.0))
    *_, table = influence_backward(
        q, k, v, out, lse, dout, softmax=Softmax(1.0), sinks=sinks_of("first", 64), bin_size=64
    )
    assert table[0, 0].tolist() == [[0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]]


@pytest.mark.full
@pytest.mark.covering(
    length=[1, 63, 64, 65, 111, 1000],
    dim=[64, 80, 96, 128, 256],
    heads=[1, 3, 4, 8],
    dtype=[torch.bfloat16, torch.float16, torch.float32],
    sinks=[(64,), (0, 64, 192)],
    keydiff=[(), (64, 192)],
    estimator=[fisher, effect],
)
def test_matrix(
    length: int, dim: int, heads: int, dtype: torch.dtype, sinks: tuple[int, ...], keydiff: tuple[int, ...],
    estimator: plain.Estimator,
) -> None:  # fmt: skip
    run(length, heads, 1, dim, dtype, sinks, 64, [estimator], keydiff)
