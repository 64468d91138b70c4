"""Taps along the rows and columns of a plane, compiled by numba.

A plane is a table of rows, which need not lie in order: `rows` says which of the table's rows each row of the neighbourhood is, so that
borders, and rows that move through a ring in memory, cost no copies. `columns` is the same of columns, and `run` says which of them lie in
the table one after the other, and need not be looked up: from which column of the neighbourhood on, where in the table that one is, and
how many there are. Places below 0 stand for samples of the value `fill`.

Rows are summed first, eight at a time, into lines that stay in a cache, and lines are then filtered along into the output. Every function
works on its own part of the output, lets go of the interpreter's lock, and makes the same bits however the work is cut: products are added
in one order, by fused multiply-add that is asked for by name. Were the compiler free to reorder and to fuse, it would do so in one way
where it takes many samples at once and in another where few are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

from sash.arrays import _vectors

ROWS = 8
"""Of output that are summed at once."""
CHAIN = 32
"""Products that are added one after the other: the parts of longer sums are added up, whose roundings are fewer."""
LINE_BYTES, LEAST_LINE_BYTES = 32 << 10, 4 << 10
"""Of a line: long ones are read from memory at its best."""
NEAR_BYTES = 640 << 10
"""Of the samples under a line's taps, which should stay in the second-level cache until the next rows are summed."""
APART_BYTES = 192
"""Between lines, that none lies a whole page after another: such share their places in the first-level cache."""

_BYTES, _MANY = _vectors.BYTES, _vectors.MANY
_EIGHT, _FOUR = (_vectors.across(rows, _MANY // rows) for rows in (8, 4))
_ONE, _NARROW, _NUMBER = (_vectors.across(1, vectors) for vectors in (_MANY // 2, 1, 0))
_LONG, _SHORT, _SINGLE = (_vectors.along(vectors) for vectors in (_MANY // 2, 1, 0))


def _fma(typing, x, y, z):
    if not isinstance(x, types.Float):
        return None

    def build(context, builder, signature, values):
        return builder.fma(*(context.cast(builder, value, given, x) for value, given in zip(values, signature.args, strict=True)))

    return x(x, y, z), build


fma: Any = intrinsic(_fma)
"""fma(x, y, z) in a compiled function: x·y + z, rounded once, in the type of x."""


def line_samples(down: int, along: int, columns: int, itemsize: int) -> int:
    """Outputs in a line, where so many taps are across and along it."""
    most = max(min(NEAR_BYTES // (down + 2 * ROWS), LINE_BYTES), LEAST_LINE_BYTES) // itemsize
    # What lies under the taps beside a line is summed twice.
    most = max(most, 4 * along)
    lines = -(-columns // most)
    return -(-columns // lines) if lines else 0


def scratch_bytes(down: int, along: int, rows: int, columns: int, itemsize: int) -> int:
    """Of `correlate`: lines, and where its rows are."""
    lines = ROWS * _pitch(line_samples(down, along, columns, itemsize) + along, itemsize) * itemsize
    return lines + 3 * 8 * (rows + down)


def _pitch(samples: int, itemsize: int) -> int:
    return (-(-samples * itemsize // 4096) * 4096 + APART_BYTES) // itemsize


def correlate(
    table: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    run: tuple[int, int, int],
    fill: float,
    down: np.ndarray,
    along: np.ndarray,
    out: np.ndarray,
) -> None:
    """out[y, x] becomes the sum over k, l of down[k]·along[l]·sample(rows[y + k], columns[x + l]); taps and output of one type.

    `rows` has out.shape[0] + down.size - 1 entries, `columns` out.shape[1] + along.size - 1.
    """
    assert table.strides[1] == table.itemsize or table.shape[1] <= 1
    assert out.dtype == down.dtype == along.dtype
    assert len(rows) >= len(out) + len(down) - 1
    assert len(columns) >= out.shape[1] + len(along) - 1
    if not out.size:
        return
    samples = line_samples(down.size, along.size, out.shape[1], out.itemsize)
    lines = np.empty((ROWS, _pitch(samples + along.size, out.itemsize)), out.dtype)
    at = rows * table.strides[0] + table.__array_interface__["data"][0]
    real = np.flatnonzero(rows >= 0)
    inside = (int(real[0]), int(real[-1]) + 1) if len(real) else (0, 0)
    _correlate(table, at, inside, columns, run, down.dtype.type(fill), down, along, samples, lines, out)


@njit(nogil=True, cache=True)
def _correlate(table, at, inside, columns, run, fill, down, along, samples, lines, out):
    """`correlate`, with the addresses of rows, and which of them there are."""
    height, width = out.shape
    left, first, count = run
    top, bottom = inside
    for start in range(0, width, samples):
        stop = min(start + samples, width)
        near = stop - start + along.size - 1
        low = min(max(left - start, 0), near)
        high = max(min(left + count - start, near), low)
        shift = first + start - left  # from a place in a line to its column in the table
        y = 0
        while y < height:
            rows = 1
            if y >= top:
                if down.size >= 8 and y + 8 <= height and y + 7 + down.size <= bottom:
                    rows = 8
                elif down.size >= 4 and y + 4 <= height and y + 3 + down.size <= bottom:
                    rows = 4
            # Taps over rows that there are, and what the others add.
            begin = min(max(top - y, 0), down.size)
            end = max(min(bottom - y, down.size), begin)
            beyond = fill * (down[:begin].sum() + down[end:].sum())
            _summed(table, at, y, rows, shift + low, down, begin, end, lines, low, high - low)
            if begin > 0 or end < down.size:
                _moved(lines[0, low:high], end > begin, beyond)
            for r in range(rows):
                line = lines[r]
                for n in range(near - (high - low)):
                    n += 0 if n < low else high - low
                    place = columns[start + n]
                    if place < 0:
                        line[n] = fill * down.sum()
                    elif low <= place - shift < high:
                        line[n] = line[place - shift]
                    else:
                        _summed(table, at, y + r, 1, place, down, begin, end, lines[r : r + 1], n, 1)
                        if begin > 0 or end < down.size:
                            _moved(line[n : n + 1], end > begin, beyond)
                _filtered(line, along, out[y + r, start:stop])
            y += rows


@njit(nogil=True, cache=True)
def _moved(line, made, by):
    """Sums, with what rows beyond the ends add to them."""
    for x in range(line.size):
        line[x] = line[x] + by if made else by


@njit(nogil=True, cache=True)
def _chain(k, end):
    """How many of the taps from k on are added one after the other; the last ones are no fewer than the rows of a tile."""
    return end - k if end - k < CHAIN + ROWS else CHAIN


@njit(nogil=True, cache=True)
def _summed(table, at, first, rows, column, taps, begin, end, lines, place, length):
    """Lines from a place on: sums of rows of the table, each times its tap, from column to column + length."""
    pitch, lanes = lines.shape[1], _BYTES // lines.itemsize
    wide = lanes * (_MANY // rows if rows > 1 else _MANY // 2)
    if length >= wide:
        for x in range(0, length, wide):
            x = min(x, length - wide)  # the last ones are made twice where they are no whole tile
            k = begin
            while k < end:
                count = _chain(k, end)
                if rows == 8:
                    _EIGHT(table, at, first + k, column + x, taps, k, count, lines, place + x, pitch, k > begin)
                elif rows == 4:
                    _FOUR(table, at, first + k, column + x, taps, k, count, lines, place + x, pitch, k > begin)
                else:
                    _ONE(table, at, first + k, column + x, taps, k, count, lines, place + x, pitch, k > begin)
                k += count
        return
    wide = lanes if length >= lanes else 1
    for r in range(rows):
        for x in range(0, length, wide):
            x = min(x, length - wide)
            k = begin
            while k < end:
                count, own = _chain(k, end), r * pitch + place + x
                if wide == 1:
                    _NUMBER(table, at, first + r + k, column + x, taps, k, count, lines, own, pitch, k > begin)
                else:
                    _NARROW(table, at, first + r + k, column + x, taps, k, count, lines, own, pitch, k > begin)
                k += count


@njit(nogil=True, cache=True)
def _filtered(line, taps, out):
    """out[x] becomes the sum over k of taps[k]·line[x + k]."""
    lanes, length, end = _BYTES // line.itemsize, out.size, taps.size
    wide = lanes * _MANY // 2 if length >= lanes * _MANY // 2 else lanes if length >= lanes else 1
    for x in range(0, length, wide):
        x = min(x, length - wide)
        k = 0
        while k < end:
            count = _chain(k, end)
            if wide == 1:
                _SINGLE(line, x + k, taps, k, count, out, x, k > 0)
            elif wide == lanes:
                _SHORT(line, x + k, taps, k, count, out, x, k > 0)
            else:
                _LONG(line, x + k, taps, k, count, out, x, k > 0)
            k += count


def converted(made: np.ndarray, out: np.ndarray) -> None:
    """Numbers in another type: to whole ones they are rounded, halves to even, and kept within the type's range; NaN becomes 0."""
    if out.dtype.kind not in "iu":
        out[...] = made
        return
    limits = np.iinfo(out.dtype)
    low, high = made.dtype.type(limits.min), made.dtype.type(limits.max)
    # The largest of a wide type is none of the float's: the one below it is the last that can be turned back.
    _rounded(made, out, low, high if int(high) <= limits.max else np.nextafter(high, low))


@njit(nogil=True, cache=True)
def _rounded(made, out, low, high):
    """Rounded numbers between two."""
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            value = made[y, x]
            out[y, x] = 0 if value != value else np.rint(min(max(value, low), high))
