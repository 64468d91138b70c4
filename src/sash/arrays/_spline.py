"""Down to every step-th sample of a plane and up again by splines, compiled by numba; places are told as in `_fir.py`."""

from __future__ import annotations

import numpy as np
from numba import njit

from sash.arrays._fir import fma

WIDTH = 4096
"""Columns worked on at a time."""
SWEEP = 4
"""Rows added up in one sweep."""


@njit(nogil=True, cache=True)
def down(table, rows, columns, run, fill, taps, step_rows, weights, step_columns, out):
    """out[j, i] becomes the sum over k, l of taps[k]·weights[l]·sample(rows[j·step_rows + k], columns[i·step_columns + l]).

    `rows` has (out.shape[0] - 1)·step_rows + taps.size entries, `columns` the same of its own.
    """
    kind = taps.dtype.type
    left, first, count = run
    line = np.empty(columns.size, taps.dtype)
    phases = np.empty((step_columns, columns.size // step_columns + 1), taps.dtype)
    blank = kind(fill) * taps.sum()
    for j in range(out.shape[0]):
        near = rows[j * step_rows : j * step_rows + taps.size]
        _summed(table, near, kind(fill), taps, first, line[left : left + count])
        for x in range(columns.size):
            if x < left or x >= left + count:
                place = columns[x]
                if place < 0:
                    line[x] = blank
                elif first <= place < first + count:
                    line[x] = line[left + place - first]
                else:
                    _summed(table, near, kind(fill), taps, place, line[x : x + 1])
        if step_columns == 1:
            _thinned(line, weights, 1, out[j])
        elif weights.size < 32:
            _by_phase(line, weights, step_columns, phases, out[j])
        else:
            _thinned(line, weights, step_columns, out[j])


@njit(nogil=True, cache=True)
def _summed(table, rows, fill, taps, first, out):
    """The sum of rows of the table from a column on, each times its tap."""
    kind = taps.dtype.type
    for start in range(0, out.size, WIDTH):
        stop = min(start + WIDTH, out.size)
        low, high = first + start, first + stop
        total = out[start:stop]
        total[:] = 0
        k = 0
        while k < taps.size:
            if k + SWEEP <= taps.size and min(rows[k], rows[k + 1], rows[k + 2], rows[k + 3]) >= 0:
                r, s = table[rows[k], low:high], table[rows[k + 1], low:high]
                t, u = table[rows[k + 2], low:high], table[rows[k + 3], low:high]
                a, b, c, d = taps[k], taps[k + 1], taps[k + 2], taps[k + 3]
                for x in range(total.size):
                    total[x] = fma(d, kind(u[x]), fma(c, kind(t[x]), fma(b, kind(s[x]), fma(a, kind(r[x]), total[x]))))
                k += SWEEP
            else:
                a = taps[k]
                if rows[k] < 0:
                    total += a * fill
                else:
                    r = table[rows[k], low:high]
                    for x in range(total.size):
                        total[x] = fma(a, kind(r[x]), total[x])
                k += 1


@njit(nogil=True, fastmath={"reassoc", "contract"}, cache=True)
def _thinned(line, weights, step, out):
    """out[i] becomes the sum over l of weights[l]·line[i·step + l]: long sums, one after the other.

    The compiler may add in the order it likes, for it is the same wherever a sum of that length stands.
    """
    for i in range(out.size):
        part = line[i * step : i * step + weights.size]
        total = weights[0] * 0
        for x in range(weights.size):
            total += weights[x] * part[x]
        out[i] = total


@njit(nogil=True, cache=True)
def _by_phase(line, weights, step, phases, out):
    """The same for short sums: samples of one phase lie together, and neighbours are summed at once."""
    for q in range(min(step, weights.size)):
        phase = phases[q, : (line.size - q + step - 1) // step]
        for i in range(phase.size):
            phase[i] = line[i * step + q]
        for k in range(0, (weights.size - q + step - 1) // step):
            w, part = weights[k * step + q], phase[k:]
            if q == 0 and k == 0:
                for i in range(out.size):
                    out[i] = w * part[i]
            else:
                for i in range(out.size):
                    out[i] = fma(w, part[i], out[i])


@njit(nogil=True, cache=True)
def up(coarse, row, taps, row_first, column, weights, column_first, out):
    """Rows of output from coarse ones.

    out[y, x] becomes the sum over s, t of taps[p, s]·weights[q, t]·coarse[j + s - row_first, i + t - column_first], where
    row + y = len(taps)·j + p and column + x = len(weights)·i + q: `row` and `column` say where on the grid the output begins, `row_first`
    and `column_first` which coarse sample comes first in the table.
    """
    height, width = out.shape
    step, count = taps.shape
    ring = np.empty((count, width), taps.dtype)
    have = (row // step) - row_first - 1
    for y in range(height):
        j = (row + y) // step
        top, used = j - row_first, taps[(row + y) - j * step]
        while have < top + count - 1:
            have += 1
            if have >= top:
                _between(coarse[have], column, weights, column_first, ring[have % count])
        for start in range(0, width, WIDTH):
            stop = min(start + WIDTH, width)
            _mixed(ring, top, used, start, stop, out[y, start:stop])


@njit(nogil=True, cache=True)
def _between(coarse, column, weights, first, out):
    """One coarse row at every column: phase by phase."""
    step, count = weights.shape
    for q in range(step):
        # The first output of this phase, and its coarse sample.
        x = (q - column) % step
        if x >= out.size:
            continue
        i = (column + x) // step - first
        w = weights[q]
        points = (out.size - x + step - 1) // step
        part = coarse[i : i + points + count]
        if count == 4:
            a, b, c, d = w[0], w[1], w[2], w[3]
            for n in range(points):
                out[x + n * step] = fma(d, part[n + 3], fma(c, part[n + 2], fma(b, part[n + 1], a * part[n])))
        else:
            for n in range(points):
                total = w[0] * part[n]
                for t in range(1, count):
                    total = fma(w[t], part[n + t], total)
                out[x + n * step] = total


@njit(nogil=True, cache=True)
def _mixed(ring, top, taps, start, stop, out):
    """The rows from `top` on, each times its tap."""
    count = taps.size
    if count == 4:
        r, s = ring[top % 4, start:stop], ring[(top + 1) % 4, start:stop]
        t, u = ring[(top + 2) % 4, start:stop], ring[(top + 3) % 4, start:stop]
        a, b, c, d = taps[0], taps[1], taps[2], taps[3]
        for x in range(out.size):
            out[x] = fma(d, u[x], fma(c, t[x], fma(b, s[x], a * r[x])))
        return
    for k in range(count):
        w, r = taps[k], ring[(top + k) % count, start:stop]
        if k == 0:
            for x in range(out.size):
                out[x] = w * r[x]
        else:
            for x in range(out.size):
                out[x] = fma(w, r[x], out[x])
