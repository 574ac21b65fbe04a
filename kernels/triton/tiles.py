"""Tile shapes per kernel and device, chosen so that nothing spills and shared memory fits (`docs/triton.md`)."""

from typing import NamedTuple

import torch
import triton


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
    """Of float32 products; 16-bit types ignore it."""


def arch() -> str:
    """The current device as `sm_90`, `gfx942`, ...; `cpu` under the interpreter."""
    if not torch.cuda.is_available():
        return "cpu"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties().gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def prefill_tiles(dim: int, dtype: torch.dtype, target: str | None = None) -> Tiles:
    """For `prefill` on `target` (the current device by default)."""
    target, width, wide = target or arch(), _width(dim), dtype == torch.float32
    narrow = wide or width > 128 or (width == 128 and target.startswith("sm_8"))
    rows = 64 if narrow else 128
    stages = 1 if target.startswith("gfx") or wide else 2
    return Tiles(rows, 4 if width <= 64 and not wide else 8, stages, width, precision(target))


def decode_tiles(dim: int, dtype: torch.dtype, rows: int, target: str | None = None) -> Tiles:
    """For `decode` with about `rows` rows (tokens times heads) per sequence and group."""
    target, width = target or arch(), _width(dim)
    block_m = min(max(triton.next_power_of_2(rows), 16), 64)
    stages = 1 if target.startswith("gfx") else 2 if dtype == torch.float32 else 3
    return Tiles(block_m, 4, stages, width, precision(target))


def influence_tiles(dim: int, dtype: torch.dtype, heads: int, target: str | None = None) -> Tiles:
    """For `influence_backward` with `heads` query heads per group."""
    target, width, wide = target or arch(), _width(dim), dtype == torch.float32
    rows = max(64, triton.next_power_of_2(heads))
    stages = 1 if target.startswith("gfx") or wide else 2
    return Tiles(rows, 8 if wide or width > 64 else 4, stages, width, precision(target))


def precision(target: str) -> str:
    """float32 products keep float32's accuracy: three TF32 passes on NVIDIA, plain multiplies elsewhere."""
    return "tf32x3" if target.startswith("sm_") else "ieee"


def _width(dim: int) -> int:
    return max(16, int(triton.next_power_of_2(dim)))
