"""Products of sparse rows with dense vectors, compiled by numba; a sum is made in the order of its row's numbers, every second apart.

Vectors lie side by side, so that a number of the matrix meets a run of numbers of theirs. Such a run is added up in the processor's
registers, which compilers do not see for themselves: written in LLVM's vectors, by fused multiply-add, it takes half as long. Where the
next runs lie is told to the caches ahead of time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FAST = {"contract", "reassoc", "nsz"}
_AHEAD = 32
"""Numbers of the matrix from the one that is being added to the one whose vectors are fetched: what a memory's delay is long."""
_CHAINS = 2
"""Sums that a row's numbers are added to in turn: one would wait for itself. As many for runs of any width, so that bits are the same."""
_LINE = 64
"""Bytes that caches fetch at once."""
_INT, _PLACE, _BYTE = ir.IntType(64), ir.IntType(32), ir.IntType(8)


class _Code:
    """What both products are written with: runs of so many numbers, in rows of C's order."""

    def __init__(self, context: Any, builder: Any, signature: Any, values: Any, width: int) -> None:
        self.context, self.builder, self.types, self.values, self.width = context, builder, signature.args, values, width
        self.vector = ir.VectorType(ir.DoubleType(), width)

    def number(self, array: int, place: Any, kind: Any) -> Any:
        """One of an array of one axis, as another kind."""
        found, given = self.array(array), self.types[array].dtype
        value = self.context.unpack_value(self.builder, given, self.builder.gep(found.data, [place]))
        return self.context.cast(self.builder, value, given, kind)

    def run(self, array: int, row: Any, column: Any) -> Any:
        """The address of a run in an array of two axes, or of one."""
        found = self.array(array)
        start = self.builder.gep(found.data, [column])
        if row is None:
            return self.builder.bitcast(start, self.vector.as_pointer())
        pitch = cgutils.unpack_tuple(self.builder, found.strides, 2)[0]
        start = self.builder.gep(self.builder.bitcast(start, _BYTE.as_pointer()), [self.builder.mul(row, pitch)])
        return self.builder.bitcast(start, self.vector.as_pointer())

    def fetch(self, address: Any, written: bool) -> None:
        """Into the caches, without waiting for it."""
        kind = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _PLACE, _PLACE, _PLACE])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        start = self.builder.bitcast(address, _BYTE.as_pointer())
        for offset in range(0, 8 * self.width, _LINE):
            self.builder.call(function, [self.builder.gep(start, [_INT(offset)]), _PLACE(int(written)), _PLACE(3), _PLACE(1)])

    def load(self, address: Any) -> Any:
        """The run there."""
        return self.builder.load(address, align=8)

    def store(self, run: Any, address: Any) -> None:
        """Put a run there."""
        self.builder.store(run, address, align=8)

    def fma(self, number: Any, run: Any, added: Any) -> Any:
        """number·run + added, each rounded once."""
        unknown = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(unknown, number, _PLACE(0))
        spread = self.builder.shuffle_vector(first, unknown, ir.Constant(ir.VectorType(_PLACE, self.width), [0] * self.width))
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.builder.call(
            cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.fma.v{self.width}f64"), [spread, run, added]
        )

    def array(self, place: int) -> Any:
        """An argument."""
        return self.context.make_array(self.types[place])(self.context, self.builder, self.values[place])


def _summed(width: int, back: bool) -> Any:
    """summed(own, column, at, values, start, stop, vectors, into): a run of `own` from `column` on grows by a row times that of `vectors`.

    The row's numbers are values[start:stop], of columns at[start:stop]. Where a product `back` follows, its runs of `into` are fetched too.
    """

    def typed(typing, own, column, at, values, start, stop, vectors, into):
        place = types.intp
        signature = types.void(own, place, at, values, place, place, vectors, into)

        def build(context, builder, signature, given):
            code = _Code(context, builder, signature, given, width)
            _, column, _, _, start, stop, _, _ = given
            last = builder.sub(code.array(2).nitems, _INT(1))
            nothing = ir.Constant(code.vector, [-0.0] * width)
            sums = [cgutils.alloca_once_value(builder, nothing if n else code.load(code.run(0, None, column))) for n in range(_CHAINS)]

            def add(at_place: Any, total: Any) -> None:
                row = code.number(2, at_place, types.intp)
                if back:
                    code.fetch(code.run(7, row, column), True)
                later = builder.add(at_place, _INT(_AHEAD))
                later = builder.select(builder.icmp_signed("<", later, last), later, last)
                code.fetch(code.run(6, code.number(2, later, types.intp), column), False)
                value = code.number(3, at_place, types.float64)
                builder.store(code.fma(value, code.load(code.run(6, row, column)), builder.load(total)), total)

            whole = builder.sub(stop, builder.srem(builder.sub(stop, start), _INT(_CHAINS)))
            with cgutils.for_range_slice(builder, start, whole, _INT(_CHAINS)) as (at_place, _):
                for n, total in enumerate(sums):
                    add(builder.add(at_place, _INT(n)), total)
            with cgutils.for_range_slice(builder, whole, stop, _INT(1)) as (at_place, _):
                add(at_place, sums[0])
            found = builder.load(sums[0])
            for total in sums[1:]:
                found = builder.fadd(found, builder.load(total))
            code.store(found, code.run(0, None, column))
            return context.get_dummy_value()

        return signature, build

    return intrinsic(typed)


def _spread(width: int) -> Any:
    """spread(own, column, at, values, start, stop, into): runs of `into` from `column` on grow by that of `own` times a row's numbers."""

    def typed(typing, own, column, at, values, start, stop, into):
        place = types.intp
        signature = types.void(own, place, at, values, place, place, into)

        def build(context, builder, signature, given):
            code = _Code(context, builder, signature, given, width)
            _, column, _, _, start, stop, _ = given
            run = code.load(code.run(0, None, column))
            with cgutils.for_range_slice(builder, start, stop, _INT(1)) as (at_place, _):
                address = code.run(6, code.number(2, at_place, types.intp), column)
                code.store(code.fma(code.number(3, at_place, types.float64), run, code.load(address)), address)
            return context.get_dummy_value()

        return signature, build

    return intrinsic(typed)


_summed32, _summed16, _summed8 = (_summed(width, False) for width in (32, 16, 8))
_there32, _there16, _there8 = (_summed(width, True) for width in (32, 16, 8))
_spread32, _spread16, _spread8 = (_spread(width) for width in (32, 16, 8))


@njit(nogil=True, cache=True, fastmath=_FAST)
def gathered(pointers, at, values, vectors, offset, into, start, stop):
    """`into[row] = rows[row] @ vectors - offset`, of rows from start to stop."""
    width = vectors.shape[1]
    for row in range(start, stop):
        own, first, last = into[row], pointers[row], pointers[row + 1]
        own[:] = -offset
        column = 0
        while column + 32 <= width:
            _summed32(own, column, at, values, first, last, vectors, vectors)
            column += 32
        if column + 16 <= width:
            _summed16(own, column, at, values, first, last, vectors, vectors)
            column += 16
        if column + 8 <= width:
            _summed8(own, column, at, values, first, last, vectors, vectors)
            column += 8
        if column < width:
            for place in range(first, last):
                for c in range(column, width):
                    own[c] += values[place] * vectors[at[place], c]


@njit(nogil=True, cache=True, fastmath=_FAST)
def _added_back(own, at, values, first, last, into):
    width, column = len(own), 0
    while column + 32 <= width:
        _spread32(own, column, at, values, first, last, into)
        column += 32
    if column + 16 <= width:
        _spread16(own, column, at, values, first, last, into)
        column += 16
    if column + 8 <= width:
        _spread8(own, column, at, values, first, last, into)
        column += 8
    if column < width:
        for place in range(first, last):
            for c in range(column, width):
                into[at[place], c] += values[place] * own[c]


@njit(nogil=True, cache=True, fastmath=_FAST)
def scattered(pointers, at, values, vectors, into):
    """`into += rows.T @ vectors`."""
    for row in range(len(pointers) - 1):
        _added_back(vectors[row], at, values, pointers[row], pointers[row + 1], into)


@njit(nogil=True, cache=True, fastmath=_FAST)
def there_and_back(pointers, at, values, vectors, offset, into, sums):
    """`into += rows.T @ made` and `sums += made.sum(0)`, of `made = rows @ vectors - offset`, which is never held."""
    width = vectors.shape[1]
    made = np.empty(width)
    for row in range(len(pointers) - 1):
        first, last = pointers[row], pointers[row + 1]
        made[:] = -offset
        column = 0
        while column + 32 <= width:
            _there32(made, column, at, values, first, last, vectors, into)
            column += 32
        if column + 16 <= width:
            _there16(made, column, at, values, first, last, vectors, into)
            column += 16
        if column + 8 <= width:
            _there8(made, column, at, values, first, last, vectors, into)
            column += 8
        if column < width:
            for place in range(first, last):
                for c in range(column, width):
                    made[c] += values[place] * vectors[at[place], c]
        _added_back(made, at, values, first, last, into)
        sums += made


@njit(nogil=True, cache=True)
def centre(made, mean, sums, scale):
    """`made = (made - outer(mean, sums)) * scale`, row by row, in place."""
    for row in range(len(made)):
        for column in range(made.shape[1]):
            made[row, column] = (made[row, column] - mean[row] * sums[column]) * scale[row]
