"""RoI pooling on the CPU, compiled by numba: loops over channels innermost, on maps that lie channels last.

Each function does the boxes, or the channels, from `first` to `last`, and lets go of the interpreter's lock, so that several may run side
by side. What they write does not overlap and is added up in the boxes' order: the result does not depend on how the work was cut.
"""

from __future__ import annotations

import numpy as np
from numba import njit

BLOCK = 128
"""Channels worked on at a time: what one box gathers, bins times channels, stays in the first-level cache or near it."""


@njit(nogil=True, cache=True)
def pool(features, images, rows, columns, first, last, values, positions):
    """The largest of each bin, and where `positions` has room, its place; rows and columns are (box, bin, start and stop)."""
    width, channels = features.shape[2:]
    high, wide = rows.shape[1], columns.shape[1]
    located = positions.size > 0
    most = np.empty((high * wide, BLOCK), features.dtype)
    place = np.empty((high * wide, BLOCK), np.int32)
    for k in range(first, last):
        image = features[images[k]]
        for start in range(0, channels, BLOCK):
            block = min(BLOCK, channels - start)
            for i in range(high):
                top, bottom = rows[k, i, 0], rows[k, i, 1]
                for j in range(wide):
                    left, right = columns[k, j, 0], columns[k, j, 1]
                    best, at = most[i * wide + j], place[i * wide + j]
                    if top >= bottom or left >= right:
                        best[:] = 0
                        at[:] = -1
                        continue
                    best[:block] = image[top, left, start : start + block]
                    at[:] = top * width + left
                    for row in range(top, bottom):
                        for column in range(left, right):
                            cell = image[row, column, start : start + block]
                            here = np.int32(row * width + column)
                            if located:
                                for c in range(block):
                                    value = cell[c]
                                    # The first of equals stays; what is not a number takes over, as in torch's own pooling.
                                    better = (value > best[c]) | (value != value)
                                    best[c] = value if better else best[c]
                                    at[c] = here if better else at[c]
                            else:
                                for c in range(block):
                                    value = cell[c]
                                    better = (value > best[c]) | (value != value)
                                    best[c] = value if better else best[c]
            for c in range(block):
                for b in range(high * wide):
                    values[k, start + c, b] = most[b, c]
            if located:
                for c in range(block):
                    for b in range(high * wide):
                        positions[k, start + c, b] = place[b, c]


@njit(nogil=True, cache=True)
def unpool(gradient, images, positions, first, last, result):
    """Adds each value's gradient at its place, for the channels from `first` to `last`."""
    boxes, _, bins = gradient.shape
    for k in range(boxes):
        image = result[images[k]]
        for c in range(first, last):
            plane = image[c]
            for b in range(bins):
                at = positions[k, c, b]
                if at >= 0:
                    plane[at] += gradient[k, c, b]


@njit(nogil=True, cache=True, fastmath={"contract"})
def align(features, images, by_row, by_column, first, last, values):
    """Each bin's weighted sum; weights are (box, bin, row) and (box, bin, column): first across rows, then across columns."""
    height, width, channels = features.shape[1:]
    high, wide = by_row.shape[1], by_column.shape[1]
    line = np.empty((width, BLOCK), features.dtype)
    sums = np.empty((high * wide, BLOCK), features.dtype)
    for k in range(first, last):
        image = features[images[k]]
        columns = np.nonzero(_read(by_column[k]))[0]
        for start in range(0, channels, BLOCK):
            block = min(BLOCK, channels - start)
            for i in range(high):
                for column in columns:
                    line[column] = 0
                for row in range(height):
                    weight = by_row[k, i, row]
                    if weight != 0:
                        for column in columns:
                            _add(line[column], weight, image[row, column, start : start + block])
                for j in range(wide):
                    mine = sums[i * wide + j]
                    mine[:] = 0
                    for column in columns:
                        weight = by_column[k, j, column]
                        if weight != 0:
                            _add(mine, weight, line[column, :block])
            for c in range(block):
                for b in range(high * wide):
                    values[k, start + c, b] = sums[b, c]


@njit(nogil=True, cache=True, fastmath={"contract"})
def unalign(gradient, images, by_row, by_column, image, first, last, result):
    """The gradient of one image's channels from `first` to `last`: `align` backwards."""
    height, width = by_row.shape[2], by_column.shape[2]
    boxes, _, bins = gradient.shape
    high, wide = by_row.shape[1], by_column.shape[1]
    block = last - first
    found = np.zeros((height, width, block), gradient.dtype)
    line = np.empty((width, block), gradient.dtype)
    sums = np.empty((bins, block), gradient.dtype)
    for k in range(boxes):
        if images[k] != image:
            continue
        columns = np.nonzero(_read(by_column[k]))[0]
        for b in range(bins):
            for c in range(block):
                sums[b, c] = gradient[k, first + c, b]
        for i in range(high):
            for column in columns:
                line[column] = 0
            for j in range(wide):
                for column in columns:
                    weight = by_column[k, j, column]
                    if weight != 0:
                        _add(line[column], weight, sums[i * wide + j])
            for row in range(height):
                weight = by_row[k, i, row]
                if weight != 0:
                    for column in columns:
                        _add(found[row, column], weight, line[column])
    for c in range(block):
        for row in range(height):
            for column in range(width):
                result[image, first + c, row, column] = found[row, column, c]


@njit(nogil=True, cache=True)
def _read(weights):
    """Whether any bin reads it, for each row or column."""
    found = np.zeros(weights.shape[1], np.bool_)
    for i in range(weights.shape[0]):
        for place in range(weights.shape[1]):
            found[place] |= weights[i, place] != 0
    return found


@njit(nogil=True, cache=True, fastmath={"contract"})
def _add(to, weight, values):
    for c in range(values.shape[0]):
        to[c] += weight * values[c]
