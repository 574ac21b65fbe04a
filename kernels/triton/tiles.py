"""Tile shapes per kernel and device, chosen so that nothing spills and shared memory fits (`docs/triton.md`)."""

from typing import NamedTuple

import torch
import triton

WIDEST = {torch.float32: 256, torch.float16: 512, torch.bfloat16: 512}
"""Largest head size of attention by type: of larger ones 64 keys and values fit neither registers nor shared memory."""

WIDEST_INFLUENCE = 256
"""Likewise of influence, which holds more tiles at once."""

LITTLE_SHARED = "sm_7", "sm_8", "sm_12"
"""Devices whose blocks may use 163 KiB of shared memory or less: Turing, Ampere, Ada, and the Blackwell of desktops."""


class Tiles(NamedTuple):
    """What a kernel is compiled with."""

    block_m: int
    """Rows (query token, head) of a tile."""
    warps: int
    stages: int
    """Depth of the K/V pipeline."""
    width: int
    """Head size padded to a power of two, at least 16."""
    precision: str
    """Precision of float32 products; 16-bit types ignore it."""


def arch() -> str:
    """Return the current device as `sm_90`, `gfx942`, ...; `cpu` under the interpreter."""
    if not torch.cuda.is_available():
        return "cpu"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def prefill_tiles(dim: int, dtype: torch.dtype, target: str | None = None) -> Tiles:
    """Return the tile sizes of `prefill_kernel` on `target` (the current device by default)."""
    target, width, wide = target or arch(), _width(dim), dtype == torch.float32
    if width > 256:
        return Tiles(16, 4 if _amd(target) else 8, 1, width, precision(target))
    if _amd(target):
        return Tiles(64 if wide or width > 128 else 128, 4, 1, width, precision(target))
    little = target.startswith(LITTLE_SHARED)
    if wide:
        return Tiles(32 if width <= 64 else 16, 8, 1, width, precision(target))
    rows = 64 if width > (64 if little else 128) else 128
    return Tiles(rows, 8, 1 if little and width > 128 else 2, width, precision(target))


def decode_tiles(dim: int, dtype: torch.dtype, rows: int, target: str | None = None) -> Tiles:
    """Return the tile sizes of `decode_kernel` with about `rows` rows (tokens times heads) per sequence and group."""
    target, width = target or arch(), _width(dim)
    wide = dtype == torch.float32 and width > 64
    block_m = 16 if rows <= 16 or width > 256 or wide else 32
    if _amd(target):
        return Tiles(block_m, 4, 1, width, precision(target))
    if width > 256 or (width > 128 and dtype == torch.float32):
        return Tiles(block_m, 8, 1, width, precision(target))  # two stages exceed an A100's shared memory
    heavy = width > 128 or dtype == torch.float32 or block_m > 16
    return Tiles(block_m, 8 if heavy else 4, 3 if width <= 64 and not heavy else 2, width, precision(target))


def gradient_q_tiles(dim: int, dtype: torch.dtype, heads: int, target: str | None = None) -> Tiles:
    """Return the tile sizes of the first influence kernel with `heads` query heads per group."""
    target, width, wide = target or arch(), _width(dim), dtype == torch.float32
    at_least = int(triton.next_power_of_2(heads))
    if _amd(target):
        rows = 64 if width <= 64 and not wide else 16 if width > 64 and wide else 32
        warps = 8 if wide and width > 128 else 4  # with 4 they share more memory than there is
        return Tiles(max(rows, at_least), warps, 1, width, precision(target))
    if wide:
        return Tiles(max(16, at_least), 8, 1, width, precision(target))
    if width > 128:
        return Tiles(max(16, at_least), 8, 2, width, precision(target))
    rows = 32 if width > 64 and target.startswith(LITTLE_SHARED) else 64
    return Tiles(max(rows, at_least), 4 if width <= 64 else 8, 2, width, precision(target))


def gradient_kv_tiles(dim: int, dtype: torch.dtype, target: str | None = None) -> Tiles:
    """Return the tile sizes of the second influence kernel: `gradient_keys` keys by at most as many rows."""
    target, width, wide = target or arch(), _width(dim), dtype == torch.float32
    if _amd(target):
        return Tiles(64 if width <= 64 else 32, 4, 1, width, precision(target))
    little = target.startswith(LITTLE_SHARED)
    if wide:  # the operands of three TF32 passes do not fit the registers
        rows = 32 if little and width == 128 else 16
        return Tiles(rows, 8, 1, width, "ieee" if little or width > 64 else precision(target))
    if width > 64:
        return Tiles(32, 8, 1 if width > 128 else 2, width, precision(target))
    return Tiles(32 if little else 64, 4, 2, width, precision(target))


def scores_warps(dim: int) -> int:
    """Return the warps of `scores_kernel`; with 4 up to 128, or 8 above, ptxas spills some words for sm_100."""
    return 8 if dim <= 128 else 4


def append_warps(summaries: bool) -> int:
    """Return the warps of `append_kernel`; with 4 ptxas spills some words for sm_80 where it writes summaries."""
    return 8 if summaries else 4


def choice_size(heads: int) -> int:
    """Return the pages that `page_choice_kernel` looks at in one step, for groups of so many query heads (padded).

    With 1,024 pages of 8 heads ptxas spills some words for sm_80.
    """
    return max(128, min(1024, 4096 // heads))


def gradient_keys(dim: int, dtype: torch.dtype) -> int:
    """Return the keys whose gradients a program of the second influence kernel holds in registers."""
    return 32 if _width(dim) > (64 if dtype == torch.float32 else 128) else 64


def precision(target: str) -> str:
    """Return the mode of `tl.dot` with float32's accuracy: three TF32 passes on NVIDIA, plain multiplies elsewhere."""
    return "tf32x3" if target.startswith("sm_") else "ieee"


def _amd(target: str) -> bool:
    return target.startswith("gfx")


def _width(dim: int) -> int:
    return max(16, int(triton.next_power_of_2(dim)))
