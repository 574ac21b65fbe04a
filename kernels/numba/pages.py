"""Generate the inner loops of a step that reads some pages only, as vector code: scores of summaries, pages of a list.

Pages are fetched ahead by their places in the list, which no hardware can foresee. Summaries lie so that one vector
holds the same channels of four pages (`moa.kernels.paged.summaries`); their scores need no sum across a whole vector.
`moa.kernels.numba.vectors` describes the rest.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from moa.kernels.numba.vectors import FAST, LINE, SIZE, Emit
from moa.plans.reading import FINE, INSIDE

AHEAD = 16
"""Pages between the one that is used and the one that is fetched; lists have as many numbers more at their end."""

NEAR = 6
"""Pages between the one that is used and the one that is fetched from the second cache into the first."""

_INT = ir.IntType(64)
_SHORT = ir.IntType(32)
_BYTE = ir.IntType(8)


class _Pages(Emit):
    """Writes the code of one loop over the pages that a list of int32 names."""

    def place(self, pages: Any, index: Any, stride: int, rows: Any) -> Any:
        """Return the address of page number `index` of the list, of `stride` bytes each from `rows` on."""
        number = self.load(self.at(pages, index, 4), _SHORT, 4)
        return self.at(rows, self.b.sext(number, _INT), stride)

    def ahead(self, pages: Any, index: Any, stride: int, rows: Any, places: int = AHEAD, caches: int = 3) -> None:
        """Fetch the page that comes so many places after `index`; `caches` as for `fetch`."""
        address = self.place(pages, self.b.add(index, ir.Constant(_INT, places)), stride, rows)
        for offset in range(0, stride, LINE):
            self.fetch(self.b.add(address, ir.Constant(_INT, offset)), caches)

    def both_ahead(self, pages: Any, index: Any, stride: int, rows: Any) -> None:
        """Fetch a page of keys or values in two steps: few lines can be on the way from memory to the first cache."""
        self.ahead(pages, index, stride, rows, caches=2)
        self.ahead(pages, index, stride, rows, NEAR)

    def line(self, numbers: Any, index: int, stride: Any) -> Any:
        """Return the address of line `index` of numbers in lines of `stride`."""
        return self.b.add(numbers, self.b.mul(stride, ir.Constant(_INT, index * self.bytes)))

    def some(self, row: Any, begin: int, count: int) -> Any:
        """Return `count` lanes of a vector."""
        lanes = ir.Constant(ir.VectorType(_SHORT, count), list(range(begin, begin + count)))
        return self.b.shuffle_vector(row, ir.Constant(row.type, ir.Undefined), lanes)

    def fours(self, row: Any) -> Any:
        """Return the sums of the lanes that are equal modulo 4."""
        count = row.type.count
        while count % (2 * INSIDE) == 0:
            count //= 2
            row = self.b.fadd(self.some(row, 0, count), self.some(row, count, count), flags=FAST)
        total = self.some(row, 0, INSIDE) if count > INSIDE else row
        for begin in range(INSIDE, count, INSIDE):
            total = self.b.fadd(total, self.some(row, begin, INSIDE), flags=FAST)
        return total

    def numbers(self, address: Any) -> Any:
        """Return four bfloat16 in the sums' type."""
        bits = ir.VectorType(_SHORT, INSIDE)
        halves = self.load(address, ir.VectorType(ir.IntType(16), INSIDE), 2)
        single = self.b.shl(self.b.zext(halves, bits), ir.Constant(bits, [16] * INSIDE))
        single = self.b.bitcast(single, ir.VectorType(ir.FloatType(), INSIDE))
        wide = ir.VectorType(self.wide, INSIDE)
        return single if self.bytes == 4 else self.b.fpext(single, wide)

    def means(self, address: Any) -> tuple[Any, Any]:
        """Return the numbers in the low and in the high bits of `size` bytes."""
        bits = ir.VectorType(_SHORT, self.size)
        signed = self.b.sext(self.load(address, ir.VectorType(_BYTE, self.size), 1), bits)
        four, most = (ir.Constant(bits, [x] * self.size) for x in (4, 28))
        low, high = self.b.ashr(self.b.shl(signed, most), most), self.b.ashr(signed, four)
        return self.b.sitofp(low, self.row), self.b.sitofp(high, self.row)


def _loop(emit: Callable[[_Pages, Any, Any, Any, Any, Any, Any], None]) -> Any:
    """Return an intrinsic (rows, pages, count, a, b, stride, heads, size, kind) whose code `emit` writes."""

    def typed(  # type: ignore[no-untyped-def]  # numba's types
        context, rows, pages, count, a, b, stride, heads, size, kind
    ):  # fmt: skip
        heads_, size_, kind_ = (x.literal_value for x in (heads, size, kind))

        def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
            emit(_Pages(builder, heads_, size_, kind_), *given[:6])
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6, heads, size, kind), code

    return intrinsic(prefer_literal=True)(typed)


def _score(e: _Pages, rows: Any, pages: Any, count: Any, queries: Any, scores: Any, stride: Any) -> None:
    quad, row = e.size + 4 * INSIDE, (2 * e.size + INSIDE) * e.bytes
    four = ir.VectorType(e.wide, INSIDE)
    with cgutils.for_range(e.b, count) as loop:
        e.ahead(pages, loop.index, quad, rows)
        address = e.place(pages, loop.index, quad, rows)
        low, high = e.means(address)
        scale, spread = (e.numbers(e.at(address, 1, e.size + x * INSIDE)) for x in (0, 2))
        for h in range(e.heads):
            query = e.at(queries, h, row)
            one, other = (e.load(e.at(query, i, e.size * e.bytes), e.row, e.bytes) for i in range(2))
            length = e.load(e.at(query, 2, e.size * e.bytes), four, e.bytes)
            both = e.b.fadd(e.b.fmul(low, one, flags=FAST), e.b.fmul(high, other, flags=FAST), flags=FAST)
            score = e.b.fadd(
                e.b.fmul(e.fours(both), scale, flags=FAST), e.b.fmul(length, spread, flags=FAST), flags=FAST
            )
            e.store(score, e.at(e.line(scores, h, stride), loop.index, INSIDE * e.bytes))


def _dots(e: _Pages, rows: Any, pages: Any, count: Any, queries: Any, scores: Any, stride: Any) -> None:
    width = e.size * SIZE[e.kind]
    heads = [e.load(e.at(queries, h, e.size * e.bytes), e.row, e.bytes) for h in range(e.heads)]
    with cgutils.for_range(e.b, count) as loop:
        e.both_ahead(pages, loop.index, FINE * width, rows)
        page = e.place(pages, loop.index, FINE * width, rows)
        first = e.b.mul(loop.index, ir.Constant(_INT, FINE))
        for j in range(FINE):
            key = e.row_at(e.at(page, j, width))
            place = e.b.add(first, ir.Constant(_INT, j))
            for h, query in enumerate(heads):
                score = e.total(e.b.fmul(key, query, flags=FAST))
                e.store(score, e.at(e.line(scores, h, stride), place, e.bytes))


def _mix(e: _Pages, rows: Any, pages: Any, count: Any, weights: Any, sums: Any, stride: Any) -> None:
    width = e.size * SIZE[e.kind]
    places = [e.at(sums, h, e.size * e.bytes) for h in range(e.heads)]
    cells = [cgutils.alloca_once_value(e.b, e.load(place, e.row, e.bytes)) for place in places]
    with cgutils.for_range(e.b, count) as loop:
        e.both_ahead(pages, loop.index, FINE * width, rows)
        page = e.place(pages, loop.index, FINE * width, rows)
        first = e.b.mul(loop.index, ir.Constant(_INT, FINE))
        for j in range(FINE):
            value = e.row_at(e.at(page, j, width))
            place = e.b.add(first, ir.Constant(_INT, j))
            for h, cell in enumerate(cells):
                weight = e.load(e.at(e.line(weights, h, stride), place, e.bytes), e.wide, e.bytes)
                part = e.b.fmul(value, e.spread(weight), flags=FAST)
                e.b.store(e.b.fadd(e.b.load(cell), part, flags=FAST), cell)
    for place, cell in zip(places, cells, strict=True):
        e.store(e.b.load(cell), place)


score_quads = _loop(_score)
"""scores[h, 4 * i + p]: of page p of quad pages[i], summaries [quads, size + 16]; queries [heads, 2 * size + 4] hold a
head's numbers for the low bits, for the high bits, and what the spread is multiplied by, as the lanes need them."""

dots = _loop(_dots)
"""scores[h, 4 * i + j] = queries[h] · key j of page pages[i]; keys [pages, 4, size], scores [heads, stride]."""

mix = _loop(_mix)
"""sums[h] += sum of weights[h, 4 * i + j] * value j of page pages[i]; the reverse of `dots`."""


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def widen(context: Any, stored: Any, out: Any, count: Any, kind: Any) -> Any:
    """Write `count` stored numbers of element type `kind` at an address as float32 to another."""
    kind_ = kind.literal_value

    def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
        e = Emit(builder, 1, 1, kind_)
        with cgutils.for_range(builder, given[2]) as loop:
            number = e.row_at(e.at(given[0], loop.index, SIZE[kind_]))
            number = builder.extract_element(number, ir.Constant(_SHORT, 0))
            number = builder.fptrunc(number, ir.FloatType()) if kind_ == "float64" else number
            builder.store(number, builder.inttoptr(e.at(given[1], loop.index, 4), ir.FloatType().as_pointer()))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, kind), code


LANES = 32
"""Numbers that `highest`, `at_least` and `reaching` take at once; `count` is a multiple of it."""


@intrinsic  # type: ignore[untyped-decorator]
def highest(context: Any, numbers: Any, count: Any, one: Any) -> Any:
    """Return the greatest of `count` numbers at an address, of the type of `one`."""

    def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(context.get_value_type(one), LANES)
        address, count, start = given
        best = cgutils.alloca_once_value(builder, _spread(builder, start, vector))
        with _vectors(builder, address, count, vector, one) as numbers:
            before = builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", numbers, before), numbers, before), best)
        found, lanes = builder.load(best), LANES
        while lanes > 1:
            lanes //= 2
            parts = (ir.Constant(ir.VectorType(_SHORT, lanes), list(range(at, at + lanes))) for at in (0, lanes))
            low, high = (builder.shuffle_vector(found, found, part) for part in parts)
            found = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        return builder.extract_element(found, ir.Constant(_SHORT, 0))

    return one(types.intp, types.intp, one), code


@intrinsic  # type: ignore[untyped-decorator]
def at_least(context: Any, numbers: Any, count: Any, bound: Any) -> Any:
    """Return how many of `count` integers at an address, of the type of `bound`, are not below it."""

    def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
        vector, mask = ir.VectorType(context.get_value_type(bound), LANES), ir.IntType(LANES)
        address, count, least = given
        bound_ = _spread(builder, least, vector)
        total = cgutils.alloca_once_value(builder, ir.Constant(_INT, 0))
        with _vectors(builder, address, count, vector, bound) as numbers:
            bits = builder.bitcast(builder.icmp_signed(">=", numbers, bound_), mask)
            builder.store(builder.add(builder.load(total), builder.zext(builder.ctpop(bits), _INT)), total)
        return builder.load(total)

    return types.intp(types.intp, types.intp, bound), code


@intrinsic  # type: ignore[untyped-decorator]
def reaching(context: Any, numbers: Any, bound: Any) -> Any:
    """Return which of LANES integers at an address, of the type of `bound`, are not below it: one bit for each."""

    def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
        vector = ir.VectorType(context.get_value_type(bound), LANES)
        found = builder.load(builder.inttoptr(given[0], vector.as_pointer()))
        found.align = bound.bitwidth // 8
        found = builder.icmp_signed(">=", found, _spread(builder, given[1], vector))
        return builder.zext(builder.bitcast(found, ir.IntType(LANES)), _INT)

    return types.intp(types.intp, bound), code


@intrinsic  # type: ignore[untyped-decorator]
def first_of(context: Any, mask: Any) -> Any:
    """Return the number of the lowest bit that is set; some bit must be."""

    def code(context, builder, signature, given):  # type: ignore[no-untyped-def]
        return builder.cttz(given[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.intp), code


@contextmanager
def _vectors(builder: Any, address: Any, count: Any, vector: Any, one: Any) -> Iterator[Any]:
    """Write a loop over `count` numbers at an address, and yield the vectors that it loads."""
    with cgutils.for_range(builder, builder.udiv(count, ir.Constant(_INT, LANES))) as loop:
        offset = builder.mul(loop.index, ir.Constant(_INT, LANES * one.bitwidth // 8))
        numbers = builder.load(builder.inttoptr(builder.add(address, offset), vector.as_pointer()))
        numbers.align = one.bitwidth // 8
        yield numbers


def _spread(builder: Any, value: Any, vector: Any) -> Any:
    """Return a vector whose numbers are all `value`."""
    nothing, lanes = ir.Constant(vector, ir.Undefined), ir.VectorType(_SHORT, vector.count)
    first = builder.insert_element(nothing, value, ir.Constant(_SHORT, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(lanes, [0] * vector.count))
