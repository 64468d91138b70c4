"""Taps along the rows and columns of a plane, compiled by numba: at every sample, down to every step-th, and up again.

A plane is a table of rows, which need not lie in order: `rows` says which of the table's rows each row of the neighbourhood is, so that
borders, and rows that move through a ring in memory, cost no copies. `columns` is the same of columns, and `run` says which of them lie in
the table one after the other, and need not be looked up: from which column of the neighbourhood on, where in the table that one is, and
how many there are. Places below 0 stand for samples of the value `fill`.

Every function works on its own part of the output, lets go of the interpreter's lock, and makes the same bits however the work is cut:
products are added in one order, by fused multiply-add that is asked for by name. Were the compiler free to reorder and to fuse, it would
do so in one way where it takes many samples at once and in another where few are left.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

WIDTH = 4096
"""Columns worked on at a time."""
DEEP = 32
"""Rows filtered along before they are filtered across: together some 600 KB of fp32, which stays in the second-level cache."""
GROUP = 8
"""Taps are filled up with zeros to a multiple of it: eight in one sweep keep multiplications, not memory, the limit."""

_U = np.uintp  # of places: signed ones are asked at every access whether they count from the end
_1, _2, _3, _4, _5, _6, _7, _8 = (_U(n) for n in range(1, 9))


def _fma(typing, x, y, z):
    if not isinstance(x, types.Float):
        return None

    def build(context, builder, signature, values):
        return builder.fma(*(context.cast(builder, value, given, x) for value, given in zip(values, signature.args, strict=True)))

    return x(x, y, z), build


fma: Any = intrinsic(_fma)
"""fma(x, y, z) in a compiled function: x·y + z, rounded once, in the type of x."""


def grouped(taps: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The taps in the type of the sums, filled up to whole groups."""
    return np.pad(taps, (0, -len(taps) % GROUP)).astype(dtype)


@njit(nogil=True, cache=True)
def _eight(u, a, b, c, d, e, f, g, h):
    """The sum of eight products, in the one order that all of this file adds in."""
    low = fma(u[3], d, fma(u[2], c, fma(u[1], b, u[0] * a)))
    return low + fma(u[7], h, fma(u[6], g, fma(u[5], f, u[4] * e)))


@njit(nogil=True, cache=True)
def _along(source, taps, out, length):
    """out[x] becomes the sum over k of taps[k]·source[x + k]."""
    for k in range(0, taps.size, GROUP):
        s, v = source[k:], taps[k : k + GROUP]
        u = (v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
        if k == 0:
            for x in range(_U(length)):
                out[x] = _eight(u, s[x], s[x + _1], s[x + _2], s[x + _3], s[x + _4], s[x + _5], s[x + _6], s[x + _7])
        else:
            for x in range(_U(length)):
                out[x] += _eight(u, s[x], s[x + _1], s[x + _2], s[x + _3], s[x + _4], s[x + _5], s[x + _6], s[x + _7])


@njit(nogil=True, cache=True)
def _across(band, first, taps, upper, lower, length):
    """Two rows of output: the sums over k of taps[k] times the band's row first + k, and first + 1 + k."""
    w = _U(WIDTH)
    for k in range(0, taps.size, GROUP):
        i, v = _U(first + k) * w, taps[k : k + GROUP]
        u = (v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7])
        if k == 0:
            for x in range(_U(length)):
                p = i + x
                r1, r2, r3, r4 = band[p + w], band[p + _2 * w], band[p + _3 * w], band[p + _4 * w]
                r5, r6, r7 = band[p + _5 * w], band[p + _6 * w], band[p + _7 * w]
                upper[x] = _eight(u, band[p], r1, r2, r3, r4, r5, r6, r7)
                lower[x] = _eight(u, r1, r2, r3, r4, r5, r6, r7, band[p + _8 * w])
        else:
            for x in range(_U(length)):
                p = i + x
                r1, r2, r3, r4 = band[p + w], band[p + _2 * w], band[p + _3 * w], band[p + _4 * w]
                r5, r6, r7 = band[p + _5 * w], band[p + _6 * w], band[p + _7 * w]
                upper[x] += _eight(u, band[p], r1, r2, r3, r4, r5, r6, r7)
                lower[x] += _eight(u, r1, r2, r3, r4, r5, r6, r7, band[p + _8 * w])


@njit(nogil=True, cache=True)
def _looked_up(source, columns, fill, taps, line, start, stop, out, first):
    """out[x - first] for x from start to stop, by samples whose places are looked up, each once."""
    if stop <= start:
        return
    for n in range(stop - start + taps.size):
        place = columns[start + n]
        line[n] = fill if place < 0 else source[place]
    _along(line, taps, out[start - first : stop - first], stop - start)


@njit(nogil=True, cache=True)
def _filtered_row(row, columns, run, fill, taps, line, start, stop, out):
    """out[x - start] for x from start to stop: taps along one row of the table."""
    left, first, count = run
    low, high = max(start, left), min(stop, left + count - taps.size)
    if high > low:
        inside = row[first + low - left : first + high - left + taps.size]
        if row.dtype == taps.dtype:
            _along(inside, taps, out[low - start : high - start], high - low)
        else:
            for x in range(inside.size):
                line[x] = inside[x]
            _along(line, taps, out[low - start : high - start], high - low)
    _looked_up(row, columns, fill, taps, line, start, min(low, stop), out, start)
    _looked_up(row, columns, fill, taps, line, max(low, high), stop, out, start)


@njit(nogil=True, cache=True)
def _stored(line, out):
    """The numbers in the output's type: whole ones rounded to the nearest, and kept in its range by the caller's types."""
    for x in range(out.size):
        out[x] = line[x]


@njit(nogil=True, cache=True)
def correlate(table, rows, columns, run, fill, down, along, out):
    """out[y, x] becomes the sum over k, l of down[k]·along[l]·sample(rows[y + k], columns[x + l]); taps by `grouped`.

    `rows` has out.shape[0] + down.size entries, `columns` out.shape[1] + along.size.
    """
    height, width = out.shape
    span = down.size + 1
    deep = span + min(DEEP, height)
    band = np.empty(deep * WIDTH, down.dtype)
    line = np.empty(WIDTH + along.size, down.dtype)
    blank = down.dtype.type(fill) * along.sum()
    for start in range(0, width, WIDTH):
        stop = min(start + WIDTH, width)
        wide = stop - start
        base, filled = 0, 0
        for y in range(0, height, 2):
            first = y - base
            if first + span > deep:
                for r in range(filled - first):
                    _stored(band[(first + r) * WIDTH : (first + r) * WIDTH + wide], band[r * WIDTH : r * WIDTH + wide])
                filled, base, first = filled - first, y, 0
            while filled < first + span:
                place = rows[min(base + filled, rows.size - 1)]
                along_row = band[filled * WIDTH : filled * WIDTH + wide]
                if place < 0:
                    along_row[:] = blank
                else:
                    _filtered_row(table[place], columns, run, fill, along, line, start, stop, along_row)
                filled += 1
            upper = out[y, start:stop]
            if y + 1 < height:
                _across(band, first, down, upper, out[y + 1, start:stop], wide)
            else:
                _across(band, first, down, upper, line[:wide], wide)


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
