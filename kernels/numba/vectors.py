"""Generate the inner loops of a decode step as vector code: one load of a key or a value serves all heads of its group.

numba's own vectoriser reloads the queries for every key and adds up in narrow registers; written with LLVM's vectors
of a whole row, the loops read memory about as fast as it can be read. Addresses are integers; every shape is a constant
of the compiled code. Element types are float32, float64, float16 and, as 16 bits each, bfloat16; sums are float32, or
float64 for float64.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

AHEAD = 8192
"""Bytes from the row that is used to the memory that is prefetched."""

LINE = 64
"""Bytes of a cache line."""

FAST = ("reassoc", "contract", "nsz", "arcp")
"""Rounding may differ from one order of summation to another; NaN and infinity stay what they are."""

SIZE = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element."""

_STORED = {
    "float64": ir.DoubleType(), "float32": ir.FloatType(), "bfloat16": ir.IntType(16), "float16": ir.HalfType(),
}  # fmt: skip
_INT = ir.IntType(64)
_SHORT = ir.IntType(32)


class Emit:
    """Writes the code of one loop over the rows [rows, size] of keys or values, for all heads of a group."""

    def __init__(self, builder: Any, heads: int, size: int, kind: str) -> None:
        self.b, self.heads, self.size, self.kind = builder, heads, size, kind
        self.wide = ir.DoubleType() if kind == "float64" else ir.FloatType()
        self.bytes = 8 if kind == "float64" else 4
        self.row = ir.VectorType(self.wide, size)

    def at(self, address: Any, index: Any, stride: int) -> Any:
        """Return `address` + `index` * `stride` bytes."""
        index = ir.Constant(_INT, index) if isinstance(index, int) else index
        return self.b.add(address, self.b.mul(index, ir.Constant(_INT, stride)))

    def load(self, address: Any, kind: Any, align: int) -> Any:
        """Return the value of LLVM type `kind` at `address`."""
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: Any, address: Any) -> None:
        """Write a value of the sums' type, or a row of them."""
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer())).align = self.bytes

    def stored(self, rows: Any, index: Any) -> Any:
        """Return row `index` of the cache in the sums' type, and prefetch the memory that lies AHEAD bytes further."""
        address = self.at(rows, index, self.size * SIZE[self.kind])
        for offset in range(0, self.size * SIZE[self.kind], LINE):
            self.fetch(self.b.add(address, ir.Constant(_INT, AHEAD + offset)))
        return self.row_at(address)

    def row_at(self, address: Any) -> Any:
        """Return the row of the cache at an address in the sums' type."""
        row = self.load(address, ir.VectorType(_STORED[self.kind], self.size), SIZE[self.kind])
        if self.kind == "bfloat16":  # the upper half of a float32
            bits = ir.VectorType(_SHORT, self.size)
            shifted = self.b.shl(self.b.zext(row, bits), ir.Constant(bits, [16] * self.size))
            return self.b.bitcast(shifted, self.row)
        return self.b.fpext(row, self.row) if self.kind == "float16" else row

    def fetch(self, address: Any, caches: int = 3) -> None:
        """Prefetch the line of memory at an address: into all caches (3), or into all but the first (2)."""
        pointer = ir.IntType(8).as_pointer()
        prefetch = cgutils.get_or_insert_function(
            self.b.module, ir.FunctionType(ir.VoidType(), [pointer, _SHORT, _SHORT, _SHORT]), "llvm.prefetch.p0"
        )
        read, keep, data = (ir.Constant(_SHORT, x) for x in (0, caches, 1))
        self.b.call(prefetch, [self.b.inttoptr(address, pointer), read, keep, data])

    def total(self, row: Any) -> Any:
        """Return the sum of a row."""
        name = f"llvm.vector.reduce.fadd.v{self.size}f{8 * self.bytes}"
        reduce = cgutils.get_or_insert_function(self.b.module, ir.FunctionType(self.wide, [self.wide, self.row]), name)
        return self.b.call(reduce, [ir.Constant(self.wide, 0.0), row], fastmath=FAST)

    def spread(self, value: Any) -> Any:
        """Return a row whose elements are all `value`."""
        nothing = ir.Constant(self.row, ir.Undefined)
        first = self.b.insert_element(nothing, value, ir.Constant(_SHORT, 0))
        return self.b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_SHORT, self.size), [0] * self.size))


def _loop(emit: Callable[[Emit, Any, Any, Any, Any, int], None]) -> Any:
    """Return an intrinsic (rows, count, a, b, heads, size, kind, stride) whose code `emit` writes."""

    def typed(  # type: ignore[no-untyped-def]  # numba's types
        context, rows, count, a, b, heads, size, kind, stride
    ):  # fmt: skip
        heads_, size_, kind_, stride_ = (x.literal_value for x in (heads, size, kind, stride))

        def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
            rows, count, a, b = given[:4]
            emit(Emit(builder, heads_, size_, kind_), rows, count, a, b, stride_)
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, types.intp, heads, size, kind, stride), code

    return intrinsic(prefer_literal=True)(typed)


def _dots(e: Emit, keys: Any, count: Any, queries: Any, scores: Any, stride: int) -> None:
    row = e.size * e.bytes
    heads = [e.load(e.at(queries, h, row), e.row, e.bytes) for h in range(e.heads)]
    with cgutils.for_range(e.b, count) as loop:
        key = e.stored(keys, loop.index)
        for h, query in enumerate(heads):
            score = e.total(e.b.fmul(key, query, flags=FAST))
            e.store(score, e.at(e.at(scores, h, stride * e.bytes), loop.index, e.bytes))


def _mix(e: Emit, values: Any, count: Any, weights: Any, sums: Any, stride: int) -> None:
    places = [e.at(sums, h, e.size * e.bytes) for h in range(e.heads)]
    cells = [cgutils.alloca_once_value(e.b, e.load(place, e.row, e.bytes)) for place in places]
    with cgutils.for_range(e.b, count) as loop:
        value = e.stored(values, loop.index)
        for h, cell in enumerate(cells):
            weight = e.load(e.at(e.at(weights, h, stride * e.bytes), loop.index, e.bytes), e.wide, e.bytes)
            part = e.b.fmul(value, e.spread(weight), flags=FAST)
            e.b.store(e.b.fadd(e.b.load(cell), part, flags=FAST), cell)
    for place, cell in zip(places, cells, strict=True):
        e.store(e.b.load(cell), place)


dots = _loop(_dots)
"""scores[h, j] = queries[h] · keys[j]: `count` keys [count, size], queries [heads, size], scores [heads, stride]."""

mix = _loop(_mix)
"""sums[h] += sum over j of weights[h, j] * values[j], for `count` values [count, size], sums [heads, size]."""
