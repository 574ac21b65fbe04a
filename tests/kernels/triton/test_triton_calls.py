"""What a call of the kernels takes and refuses, and what it launches."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo  # before a test puts another class in the place of `torch.cuda.device`, which it looks up once
from piecewise import ALL, WINDOW, agree, texts
from torch import Tensor

from moa.kernels.call import Packed, Visibility
from moa.kernels.softmax import Softmax
from moa.kernels.store import allocate
from moa.kernels.triton import influence, tiles
from moa.kernels.triton import operations as kernels
from moa.kernels.triton.common import on_device, require_supported
from moa.kernels.triton.pieces import pieces
from moa.plans.errors import Unsupported
from moa.plans.span import BLOCK

pytestmark = pytest.mark.usefixtures("nothing_is_zero_by_luck")


def test_no_kernel_leaves_the_order_of_its_sums_to_chance() -> None:
    """So the same input gives the same bits. The interpreter runs one program after another: results cannot show it."""
    files = list(Path(kernels.__file__).parent.glob("*.py"))
    assert len(files) > 5
    assert not [file.name for file in files if "atomic_" in file.read_text()]


def test_whole_pieces_start_first() -> None:
    store = allocate(np.array([[64, 640], [320, 64]]), 16, torch.float32, "cpu")
    items, size, most = pieces(store)
    left = store.capacity.flatten()[items[:, 0].long()] // BLOCK - size * items[:, 1]
    assert (size, most, left.clamp(max=size).tolist()) == (4, 3, [4, 4, 2, 4, 1, 1, 1])


def test_a_step_finds_its_pieces_made_by_the_prefill() -> None:
    """Made inside a compiled step they would be a part of its graph, and be overwritten by the graph's next replay."""
    text = texts([70], [WINDOW, ALL], 1, 16, torch.float32)
    (_, k, v), batch = text.new(torch.tensor([0]), torch.tensor([70]))
    store = text.store(torch.tensor([70]))
    kernels.append(store, k, v, seen=text.seen(), batch=batch)
    assert "pieces" in store.scratch


def test_a_call_reads_no_value_and_runs_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors on `meta` have no values: what a launch needs is known without them, so that nothing waits for any."""
    launched, current = [], [-2]

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *_, **__: launched.append((self.name, grid, current[-1]))

    monkeypatch.setattr(torch.cuda, "device", Device)
    for name, kernel in (("prefill", "prefill"), ("append", "append"), ("decode", "decode"), ("decode", "join")):
        monkeypatch.setattr(import_module(f"moa.kernels.triton.{name}"), f"{kernel}_kernel", Kernel(kernel))
    store = allocate(np.array([[1024, 128]]), 16, torch.float32, "meta")
    for rows in (100, 1):
        q, k, v = (torch.empty(rows, heads, 16, device="meta") for heads in (4, 2, 2))
        offsets, past = (torch.empty(n, dtype=kind, device="meta") for n, kind in ((2, torch.int32), (1, torch.int64)))
        seen = Visibility(*(torch.empty(shape, dtype=torch.int32, device="meta") for shape in ((2, 16), (2,))))
        kernels.decode(q, k, v, batch=Packed(offsets, past, rows), seen=seen, store=store, softmax=Softmax(0.25))
    assert launched == [
        ("prefill", (2 * (200 // 32 + 1),), -1), ("append", (2, 2), -1),
        ("decode", (5,), -1), ("join", (1, 4, 1), -1),
    ]  # fmt: skip
    assert on_device(SimpleNamespace(is_cuda=True, device=torch.device("cuda", 1))).index == 1


def test_strided_inputs() -> None:
    text = texts([130], [WINDOW, ALL], 2, 16, torch.float32)
    begin, end = torch.zeros(1, dtype=torch.int64), torch.tensor([130])
    (q, k, v), batch = text.new(begin, end)
    q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v))
    assert not q.is_contiguous()
    agree(text, begin, end, kernels.attend(q, k, v, seen=text.seen(), softmax=Softmax(0.25), batch=batch))


def test_nothing_new() -> None:
    text = texts([0], [ALL], 1, 16, torch.float32)
    (q, k, v), batch = text.new(torch.tensor([0]), torch.tensor([0]))
    assert kernels.attend(q, k, v, seen=text.seen(), softmax=Softmax(1.0), batch=batch).shape == (0, 1, 16)


@pytest.mark.parametrize("dim", [8, 72])
def test_head_sizes_that_do_not_align_are_refused(dim: int) -> None:
    text = texts([10], [ALL], 1, dim, torch.float32)
    (q, k, v), batch = text.new(torch.tensor([0]), torch.tensor([10]))
    with pytest.raises(Unsupported, match=f"head size {dim}"):
        kernels.attend(q, k, v, seen=text.seen(), softmax=Softmax(1.0), batch=batch)


def test_wide_heads_are_taken_where_their_keys_fit() -> None:
    text = texts([10], [ALL], 1, 512, torch.float32)
    (q, k, v), batch = text.new(torch.tensor([0]), torch.tensor([10]))
    with pytest.raises(Unsupported, match=r"head sizes up to 256 in torch.float32, found 512: choose torch"):
        kernels.attend(q, k, v, seen=text.seen(), softmax=Softmax(1.0), batch=batch)
    assert not influence.takes(q.bfloat16())
    assert influence.takes(q[..., :256])
    assert not influence.takes(q[..., :256].double())


def test_a_start_off_the_16_byte_grid_is_refused() -> None:
    text = texts([10], [ALL], 1, 16, torch.float32)
    (q, k, v), batch = text.new(torch.tensor([0]), torch.tensor([10]))
    off = torch.zeros(k.numel() + 1)[1:].view(k.shape)
    with pytest.raises(Unsupported, match="1 elements of 4 bytes into its storage"):
        kernels.attend(q, off, v, seen=text.seen(), softmax=Softmax(1.0), batch=batch)


def test_what_surrounds_a_launch_breaks_no_compiled_graph() -> None:
    def surroundings(x: Tensor) -> Tensor:
        require_supported(x)
        with on_device(x):
            return x + 1

    compiled = torch.compile(surroundings, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2, 2, 16)), torch.ones(2, 2, 16))


def test_float64_is_refused() -> None:
    text = texts([10], [ALL], 1, 16, torch.float64)
    (q, k, v), batch = text.new(torch.tensor([0]), torch.tensor([10]))
    with pytest.raises(Unsupported, match=r"found torch\.float64"):
        kernels.attend(q, k, v, seen=text.seen(), softmax=Softmax(1.0), batch=batch)


def test_append_refuses_what_attention_refuses() -> None:
    text = texts([10], [ALL], 1, 16, torch.float32)
    (_, k, v), batch = text.new(torch.tensor([0]), torch.tensor([10]))
    store = text.store(torch.tensor([10]))
    with pytest.raises(Unsupported, match="contiguous last dimension"):
        kernels.append(store, k.transpose(0, 2).contiguous().transpose(0, 2), v, seen=text.seen(), batch=batch)


def test_devices_of_little_shared_memory_have_small_tiles() -> None:
    for ask in (tiles.prefill_tiles, tiles.gradient_kv_tiles, lambda *a: tiles.gradient_q_tiles(*a[:2], 4, a[2])):
        for dtype in (torch.float32, torch.bfloat16):
            for dim in (64, 128, 256):
                few = {ask(dim, dtype, target) for target in ("sm_80", "sm_89", "sm_120", "sm_121")}
                assert len(few) == 1
    assert tiles.prefill_tiles(256, torch.bfloat16, "sm_120") != tiles.prefill_tiles(256, torch.bfloat16, "sm_100")


def test_every_device_has_tiles() -> None:
    for target in ("sm_80", "sm_90", "sm_100", "gfx942", "cpu"):
        for dtype in (torch.float32, torch.bfloat16):
            for dim in (64, 80, 96, 128, 256, 512):
                assert tiles.prefill_tiles(dim, dtype, target).width >= dim
                assert tiles.decode_tiles(dim, dtype, 200, target).block_m >= 16
