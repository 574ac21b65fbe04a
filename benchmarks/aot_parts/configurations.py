"""Build each kernel as its launcher would, for a target, type and head size."""

from typing import Any

import torch
import triton
from aot_parts.build import CHANGING, Row, build

from moa.kernels.triton.append import append_kernel
from moa.kernels.triton.changing_prefill import AT_ONCE as CANDIDATES
from moa.kernels.triton.changing_sinks import changing_sinks_kernel
from moa.kernels.triton.decode import decode_kernel, join_kernel
from moa.kernels.triton.gradient_kv import gradient_kv_kernel
from moa.kernels.triton.gradient_q import gradient_q_kernel
from moa.kernels.triton.moves import keep_kernel, leave_kernel, put_kernel
from moa.kernels.triton.page_choice import page_choice_kernel
from moa.kernels.triton.page_scores import AT_ONCE, page_scores_kernel
from moa.kernels.triton.pooled_append import APPENDED, pooled_append_kernel
from moa.kernels.triton.pooled_decode import pooled_decode_kernel, pooled_join_kernel
from moa.kernels.triton.pooled_prefill import pooled_prefill_kernel
from moa.kernels.triton.prefill import prefill_kernel
from moa.kernels.triton.read import read_kernel
from moa.kernels.triton.selection import exits_kernel, scores_kernel, table_kernel
from moa.kernels.triton.summaries import even_part
from moa.kernels.triton.tiles import (
    Tiles,
    append_warps,
    choice_size,
    decode_tiles,
    gradient_keys,
    gradient_kv_tiles,
    gradient_q_tiles,
    prefill_tiles,
    scores_warps,
)


def prefill(target: str, dtype: torch.dtype, dim: int, *, store: bool, heads: int = 4, plain: bool = True,
            lse: bool = False, ones: bool = False, changing: bool = False) -> Row:  # fmt: skip
    t = prefill_tiles(dim, dtype, target)
    constants = {
        "HEADS": heads, "GROUPS": 1 if ones else 8, "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m,
        "HAS_STORE": store, "WITH_LSE": lse, "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}, {'store and new' if store else 'new tokens'}{', lse' if lse else ''}"
    if changing:
        variant += ", changing sinks"
    else:
        constants |= dict.fromkeys(CHANGING)
    return build(prefill_kernel, "prefill", target, dtype, dim, variant, t, constants, plain=plain, ones=ones)


def decode(target: str, dtype: torch.dtype, dim: int, *, tokens: int = 1, heads: int = 4, plain: bool = True,
           split: bool = True, append: bool = True, ones: bool = False, reads: bool = False) -> Row:  # fmt: skip
    t = decode_tiles(dim, dtype, tokens * heads, target)
    constants = {
        "HEADS": heads, "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "APPEND": append, "SPLIT": split,
        "PRECISION": t.precision,
    }  # fmt: skip
    constants |= {} if reads else {"share": None, "given": None}
    pointers = {"out": "*fp32"} if split else {}
    variant = f"group of {heads}, {tokens} tokens{'' if split else ', one piece'}{'' if append else ', no append'}"
    variant += ", reads" if reads else ""
    return build(decode_kernel, "decode", target, dtype, dim, variant, t, constants, pointers, plain, ones)


def join(target: str, dtype: torch.dtype, dim: int, *, ones: bool = False, reads: bool = False) -> Row:
    t, constants = Tiles(0, 1, 3, dim, ""), {"HEADS": 4, "D": dim, "COLUMNS": 32, "AT_ONCE": 32}
    constants |= {} if reads else {"share": None, "given": None}
    return build(join_kernel, "join", target, dtype, dim, "reads" if reads else "", t, constants, ones=ones)


def reads(target: str, dtype: torch.dtype, dim: int, *, heads: int = 4, tokens: int = 1, plain: bool = True,
          ones: bool = False) -> list[Row]:  # fmt: skip
    """Return what a step launches whose rows choose pages, but for the new keys: scores and choice at both levels."""
    shape = decode_tiles(dim, dtype, tokens * heads, target)
    up, rows, variant = triton.next_power_of_2(heads), list[Row](), f"group of {heads}"
    shared = {"HEADS": heads, "D": dim, "AT_ONCE": AT_ONCE}
    for level, listed in (("coarse", {"listed": None}), ("fine", {})):
        t = Tiles(max(16, up), 4, 3, max(16, triton.next_power_of_2(dim // 4)), shape.precision)
        constants = {**shared, **listed, "UP": t.block_m, "WIDTH": t.width, "PRECISION": t.precision}
        rows.append(build(page_scores_kernel, "page scores", target, dtype, dim, f"{variant}, {level}", t, constants,
                          ones=ones))  # fmt: skip
        t = Tiles(choice_size(up), 8, 3, dim, "")
        constants = {**shared, **listed, "UP": up, "SIZE": t.block_m}
        rows.append(build(page_choice_kernel, "page choice", target, dtype, dim, f"{variant}, {level}", t, constants,
                          ones=ones))  # fmt: skip
    constants = {
        "HEADS": heads, "D": dim, "WIDTH": shape.width, "SPLIT": True, "PRECISION": shape.precision,
    }  # fmt: skip
    variant, pointers = f"{variant}, {tokens} tokens", {"out": "*fp32"}
    rows.append(decode(target, dtype, dim, tokens=tokens, heads=heads, plain=plain, append=False, ones=ones,
                       reads=True))  # fmt: skip
    rows.append(build(read_kernel, "read", target, dtype, dim, variant, shape, constants, pointers, plain, ones))
    return rows


def append(target: str, dtype: torch.dtype, dim: int, *, ones: bool = False, summaries: bool = False) -> Row:
    t = Tiles(64, append_warps(summaries), 3, triton.next_power_of_2(dim), "")
    constants = {"D": dim, "WIDTH": t.width, "EVEN": even_part(dim), "ROWS": 64}
    variant = "with summaries" if summaries else ""
    constants |= {} if summaries else {"summaries": None}
    return build(append_kernel, "append", target, dtype, dim, variant, t, constants, ones=ones)


def pooled(target: str, dtype: torch.dtype, dim: int, *, heads: int = 4) -> list[Row]:
    """Return what a layer launches whose heads have blocks in pools, as in vLLM: one new token each, or several."""
    t, variant = Tiles(APPENDED, 4, 3, triton.next_power_of_2(dim), ""), f"group of {heads}"
    rows = [build(pooled_append_kernel, "pooled append", target, dtype, dim, "", t,
                  {"D": dim, "WIDTH": t.width, "ROWS": t.block_m})]  # fmt: skip
    shared = {"HEADS": heads, "GROUPS": 8, "D": dim}
    for name, kernel, t in (
        ("prefill", pooled_prefill_kernel, prefill_tiles(dim, dtype, target)),
        ("decode", pooled_decode_kernel, decode_tiles(dim, dtype, heads, target)),
    ):
        split = {"SPLIT": True} if name == "decode" else {}
        constants = {**shared, **split, "WIDTH": t.width, "BLOCK_M": t.block_m, "PRECISION": t.precision}
        pointers = {"out": "*fp32"} if split else {}
        rows.append(build(kernel, f"pooled {name}", target, dtype, dim, variant, t, constants, pointers))
    t, constants = Tiles(0, 1, 3, dim, ""), {"HEADS": heads, "D": dim, "COLUMNS": 32, "AT_ONCE": 32}
    rows.append(build(pooled_join_kernel, "pooled join", target, dtype, dim, variant, t, constants))
    return rows


def gradient_q(target: str, dtype: torch.dtype, dim: int, *, squared: bool = True, heads: int = 4, plain: bool = True,
               sinks: int = 1) -> Row:  # fmt: skip
    t = gradient_q_tiles(dim, dtype, heads, target)
    heads_up = triton.next_power_of_2(heads)
    constants = {
        "HEADS": heads, "HEADS_UP": heads_up, "POSITIONS": t.block_m // heads_up, "SINKS_UP": sinks, "SQUARED": squared,
        "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}, {'squared' if squared else 'signed'}, {sinks} sink{'s' if sinks > 1 else ''}"
    return build(gradient_q_kernel, "influence q", target, dtype, dim, variant, t, constants, plain=plain)


def changing_sinks(target: str, dtype: torch.dtype, dim: int, heads: int = 4, plain: bool = True) -> Row:
    t = gradient_q_tiles(dim, dtype, heads, target)
    heads_up = triton.next_power_of_2(heads)
    constants = {
        "HEADS": heads, "HEADS_UP": heads_up, "POSITIONS": t.block_m // heads_up, "SQUARED": True, "D": dim,
        "WIDTH": t.width, "BLOCK_M": t.block_m, "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}"
    return build(changing_sinks_kernel, "influence sinks", target, dtype, dim, variant, t, constants, plain=plain)


def gradient_kv(target: str, dtype: torch.dtype, dim: int, heads: int = 4, plain: bool = True) -> Row:
    t = gradient_kv_tiles(dim, dtype, target)
    constants = {
        "HEADS": heads, "D": dim, "WIDTH": t.width, "BLOCK_M": t.block_m, "KEYS": gradient_keys(dim, dtype),
        "PRECISION": t.precision,
    }  # fmt: skip
    variant = f"group of {heads}"
    return build(gradient_kv_kernel, "influence kv", target, dtype, dim, variant, t, constants, plain=plain)


def selection(target: str, dtype: torch.dtype, dim: int) -> list[Row]:
    """Return what chooses and moves the keys of changing sinks, in a prefill and in steps."""
    width = triton.next_power_of_2(dim)
    constants: dict[str, tuple[Any, dict[str, Any]]] = {
        "scores": (scores_kernel, {"D": dim, "WIDTH": width // 2}), "exits": (exits_kernel, {}),
        "table": (table_kernel, {"AT_ONCE": CANDIDATES}), "keep": (keep_kernel, {"D": dim, "WIDTH": width}),
        "leave": (leave_kernel, {"D": dim, "WIDTH": width}), "put": (put_kernel, {"D": dim, "WIDTH": width}),
    }  # fmt: skip
    rows = []
    for name, (kernel, given) in constants.items():
        t = Tiles(64, scores_warps(dim) if name == "scores" else 4, 3, dim, "")
        rows.append(build(kernel, name, target, dtype, dim, "", t, given))
    return rows
