"""Sums of products with taps, for a tile of outputs that stays in the processor's registers: numba's functions, written in LLVM's vectors.

A compiler's own vectors load every sample again for each tap, and are twice as slow. A tile is several rows of several vectors: along rows
a tap meets them all, and of samples that lie one beside the other every second one is loaded, its neighbour shifted out of two that were.
Each output is one chain of fused multiply-adds, tap after tap, so that its bits are the same in a tile of any size, on any processor.

numba's cache of `_fir.py` does not see changes of this file: touch that one after them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = binding.get_host_cpu_features()
BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
"""Of a vector."""
MANY = 8 if BYTES == 32 else 16
"""Sums that stay in registers, with what is added to them: AVX2 has sixteen registers, the others thirty-two."""
_INT, _PLACE, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)
_FLOATS = {32: ir.FloatType(), 64: ir.DoubleType()}


def across(rows: int, vectors: int) -> Any:
    """across(table, at, first, column, taps, tap, count, lines, place, pitch, more): so many rows of so many vectors (0: of one number).

    lines[r·pitch + place + x] becomes the sum over k < count of taps[tap + k] times the sample in column + x of the row that begins at the
    address at[first + r + k], or grows by it, if `more`. `table` only says what samples are. `count` is at least `rows`.
    """

    def typed(typing, table, at, first, column, taps, tap, count, lines, place, pitch, more):
        place_of = types.intp
        signature = types.void(table, at, place_of, place_of, taps, place_of, place_of, lines, place_of, place_of, types.boolean)

        def build(context, builder, signature, values):
            code = _code(context, builder, taps.dtype, vectors)
            addresses, weights, out = (_data(context, builder, signature, values, n) for n in (1, 4, 7))
            _, _, first, column, _, tap, count, _, place, pitch, more = values
            size = table.dtype.bitwidth // 8
            left = builder.mul(column, _INT(size))

            def samples(row: Any) -> list[Any]:
                address = builder.add(builder.load(builder.gep(addresses, [builder.add(first, row)])), left)
                start = builder.inttoptr(address, _BYTE.as_pointer())
                return [code.load(builder.gep(start, [_INT(n * code.lanes * size)]), table.dtype) for n in range(code.vectors)]

            def added(sums: Sequence[Any], row: Any, over: range) -> list[Any]:
                found, near = list(sums), samples(row)
                for r in over:
                    weight = code.spread(builder.load(builder.gep(weights, [builder.add(tap, builder.sub(row, _INT(r)))])))
                    part = slice(r * code.vectors, (r + 1) * code.vectors)
                    found[part] = [code.fma(weight, one, total) for one, total in zip(near, found[part], strict=True)]
                return found

            sums = [code.nothing] * (rows * code.vectors)
            for row in range(rows - 1):
                sums = added(sums, _INT(row), range(row + 1))
            _, sums = code.loop(_INT(rows - 1), count, 1, sums, lambda row, now: added(now, row, range(rows)))
            for row in range(rows - 1):
                sums = added(sums, builder.add(count, _INT(row)), range(row + 1, rows))
            for n, total in enumerate(sums):
                row = builder.mul(_INT(n // code.vectors), pitch)
                code.store(total, builder.gep(out, [builder.add(builder.add(row, place), _INT(n % code.vectors * code.lanes))]), more)
            return context.get_dummy_value()

        return signature, build

    return intrinsic(typed)


def along(vectors: int) -> Any:
    """along(line, place, taps, tap, count, out, more): so many vectors (0: one number) one beside the other.

    out[x] becomes the sum over k < count of taps[tap + k]·line[place + x + k], or grows by it, if `more`.
    """

    def typed(typing, line, place, taps, tap, count, out, start, more):
        place_of = types.intp
        signature = types.void(line, place_of, taps, place_of, place_of, out, place_of, types.boolean)

        def build(context, builder, signature, values):
            code = _code(context, builder, taps.dtype, vectors)
            source, weights, into = (_data(context, builder, signature, values, n) for n in (0, 2, 5))
            _, place, _, tap, count, _, start, more = values

            def added(sums: Sequence[Any], k: Any, taps_at_once: int) -> list[Any]:
                begin = builder.gep(source, [builder.add(place, k)])
                reach = code.vectors + taps_at_once - 1
                near = [code.load(builder.gep(begin, [_INT(n * code.lanes)]), taps.dtype) for n in range(reach)]
                found = list(sums)
                for shift in range(taps_at_once):
                    weight = code.spread(builder.load(builder.gep(weights, [builder.add(builder.add(tap, k), _INT(shift))])))
                    found = [code.fma(weight, code.shifted(near, n, shift), total) for n, total in enumerate(found)]
                return found

            k, sums = _INT(0), [code.nothing] * code.vectors
            if code.lanes > 1:
                k, sums = code.loop(k, count, 2, sums, lambda k, now: added(now, k, 2))
            _, sums = code.loop(k, count, 1, sums, lambda k, now: added(now, k, 1))
            for n, total in enumerate(sums):
                code.store(total, builder.gep(into, [builder.add(start, _INT(n * code.lanes))]), more)
            return context.get_dummy_value()

        return signature, build

    return intrinsic(typed)


@dataclass(frozen=True)
class _Code:
    """What is written: sums of one type, `lanes` of them in a vector."""

    builder: Any
    kind: types.Float
    scalar: Any
    lanes: int
    vectors: int

    @property
    def vector(self) -> Any:
        """Its type."""
        return self.of(self.scalar)

    @property
    def nothing(self) -> Any:
        """What a sum begins with: -0, to which anything can be added without a change."""
        return ir.Constant(self.vector, -0.0 if self.lanes == 1 else [-0.0] * self.lanes)

    def of(self, scalar: Any) -> Any:
        """So many of a type."""
        return scalar if self.lanes == 1 else ir.VectorType(scalar, self.lanes)

    def load(self, pointer: Any, kind: Any) -> Any:
        """Samples that lie together, in the type of sums."""
        builder = self.builder
        if isinstance(kind, types.Float):
            found = builder.load(builder.bitcast(pointer, self.of(_FLOATS[kind.bitwidth]).as_pointer()), align=1)
            wider = kind.bitwidth - self.kind.bitwidth
            return builder.fpext(found, self.vector) if wider < 0 else builder.fptrunc(found, self.vector) if wider else found
        found = builder.load(builder.bitcast(pointer, self.of(ir.IntType(kind.bitwidth)).as_pointer()), align=1)
        return (builder.sitofp if kind.signed else builder.uitofp)(found, self.vector)

    def spread(self, value: Any) -> Any:
        """A number in every lane."""
        if self.lanes == 1:
            return value
        unknown = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(unknown, value, _PLACE(0))
        return self.builder.shuffle_vector(first, unknown, ir.Constant(ir.VectorType(_PLACE, self.lanes), [0] * self.lanes))

    def shifted(self, near: Sequence[Any], n: int, shift: int) -> Any:
        """The vector that begins so many numbers after vector n."""
        if not shift:
            return near[n]
        lanes = ir.Constant(ir.VectorType(_PLACE, self.lanes), [shift + lane for lane in range(self.lanes)])
        return self.builder.shuffle_vector(near[n], near[n + 1], lanes)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        """x·y + z, rounded once."""
        name = f"llvm.fma.{'' if self.lanes == 1 else f'v{self.lanes}'}f{self.kind.bitwidth}"
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(self.vector, [self.vector] * 3), name)
        return self.builder.call(function, [x, y, z])

    def store(self, value: Any, pointer: Any, more: Any) -> None:
        """Put in the place of what is there, or added to it."""
        builder = self.builder
        there = builder.bitcast(pointer, self.vector.as_pointer())
        with builder.if_else(more) as (added, put):
            with added:
                builder.store(builder.fadd(builder.load(there, align=1), value), there, align=1)
            with put:
                builder.store(value, there, align=1)

    def loop(self, first: Any, count: Any, step: int, sums: Sequence[Any], added: Callable[[Any, Sequence[Any]], list[Any]]) -> Any:
        """From `first` on by whole steps up to `count`: where it ended, and the sums."""
        builder = self.builder
        before = builder.basic_block
        head, body, end = (builder.append_basic_block(name) for name in ("head", "body", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        at, now = builder.phi(_INT), [builder.phi(self.vector) for _ in sums]
        after = builder.add(at, _INT(step))
        builder.cbranch(builder.icmp_signed("<=", after, count), body, end)
        builder.position_at_end(body)
        found = added(at, now)
        builder.branch(head)
        for phi, start, next_one in zip((at, *now), (first, *sums), (after, *found), strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(next_one, builder.basic_block)
        builder.position_at_end(end)
        return at, now


def _code(context: Any, builder: Any, kind: Any, vectors: int) -> _Code:
    return _Code(builder, kind, context.get_value_type(kind), BYTES * 8 // kind.bitwidth if vectors else 1, max(vectors, 1))


def _data(context: Any, builder: Any, signature: Any, values: Any, place: int) -> Any:
    """Where an array's numbers begin."""
    return context.make_array(signature.args[place])(context, builder, values[place]).data
