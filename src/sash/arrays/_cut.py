"""How a pass is cut into tasks, so that what it holds stays inside a budget."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from sash.arrays._pass import Cut, Pass
from sash.arrays._planes import Part
from sash.arrays._running import THREAD_BYTES, fewer
from sash.arrays._store import Sink
from sash.window import Interval

TURNS = 4
"""Tasks for each worker, at least: rows cost differently, and so do processors."""
LEAST_NUMBERS = 1 << 18
"""Numbers that a task makes, where there are so many: fewer do not pay for handing it out."""
WORTH = 1.05
"""Narrower bands are not looked at where what is done twice costs less than this."""
LEAST_ROWS, LEAST_COLUMNS = 16, 512
"""Tasks smaller than that along an axis would save next to nothing, and never end."""
MOST_BYTES = 64 << 20
"""Bytes that a task writes: more would make progress coarse and an interruption dear."""


def cut(made: Pass, sink: Sink, room: int, workers: int) -> tuple[Cut | None, int]:
    """The quickest way to cut the pass within `room` bytes, None where there is none; and the bytes of that, or of the smallest."""
    best, cost, least = None, float("inf"), 0
    for columns in halvings(made, sink):
        for count in fewer(workers):
            most = _most(made, sink, count, columns)
            if best is not None and _cost(made, most) >= cost:
                continue
            found, taken = _tallest(made, sink, most, room)
            least = taken if not least else min(least, taken)
            if found is not None and (dear := _cost(made, found)) < cost:
                best, cost = (found, taken), dear
        if best is not None and best[0].workers == workers and cost * workers < WORTH:
            break
    return best or (None, least)


def halvings(made: Pass, sink: Sink) -> list[int]:
    """Widths of bands: all columns, and ever half as many, whole grains of them, or tiles."""
    width, grain = made.stage.shape[1], max(made.written.grain(sink.grain)[2], made.written.step)
    grain = made.stage.unit[1] if grain == 1 else grain
    found = [width]
    while found[-1] > max(grain, LEAST_COLUMNS):
        found.append(max(ceil(found[-1] / 2 / grain), 1) * grain)
    return found


def _most(made: Pass, sink: Sink, workers: int, columns: int) -> Cut:
    """The most rows that are wanted of a task, whole grains of them: with fewer more is done twice."""
    lead, grain, _ = made.written.grain(sink.grain)
    height = made.stage.shape[0]
    lead = together(made, lead, height * columns * made.written.channels)
    lanes = made.written.lanes(tuple(Interval(0, count) for count in lead))
    row_bytes = lanes * columns * made.sink_dtype.itemsize
    unit = made.stage.unit[0]
    # Tiles that stand on their own read what is beside them again in any case.
    wanted = max(ceil(height / (TURNS * workers)), ceil(LEAST_NUMBERS / (lanes * columns)), 4 * _beyond(made) if unit == 1 else 1)
    wanted = min(ceil(wanted / unit) * unit, height, max(MOST_BYTES // row_bytes // unit, 1) * unit)
    return Cut(workers, lead, max(ceil(wanted / grain), ceil(min(LEAST_ROWS, height) / grain)) * grain, columns)


def _tallest(made: Pass, sink: Sink, most: Cut, room: int) -> tuple[Cut | None, int]:
    """As many rows as fit, up to those; None where the fewest do not; and the bytes of what was found, or of the fewest."""
    grain, height, unit = made.written.grain(sink.grain)[1], made.stage.shape[0], made.stage.unit[0]
    low, high = ceil(min(LEAST_ROWS, height) / grain), most.rows // grain

    def tried(count: int) -> tuple[Cut, int]:
        found = replace(most, rows=min(count * grain, ceil(height / grain) * grain))
        return found, made.peak_bytes(found, sink) + min(most.workers, made.count(found)) * THREAD_BYTES

    # Memory grows with the rows: where the fewest take too much, no others need be tried.
    fewest, least = tried(low)
    if least > room:
        return None, least
    while high > low:
        found, taken = tried(high)
        if taken <= room:
            return found, taken
        # As far down as a straight line between both says, to whole tiles where there are some.
        line = low + (high - low) * (room - least) / (taken - least)
        whole = int(line * grain) // unit * unit // grain
        high = max(low, min(high - 1, whole or int(line)))
    return fewest, least


def together(made: Pass, grain: tuple[int, ...], numbers: int) -> tuple[int, ...]:
    """Places of leading axes that a task takes together, of so many numbers each: small planes several at once."""
    if not grain:
        return grain
    more = max(LEAST_NUMBERS // max(numbers, 1) // grain[-1], 1) * grain[-1]
    return (*grain[:-1], min(more, ceil(made.written.shape[len(grain) - 1] / grain[-1]) * grain[-1]))


def _beyond(made: Pass) -> int:
    """Rows that a task reads beside those under it, in rows of output."""
    rows, _ = made.stage.reads(Interval(0, 1), Interval(0, 1))
    two, _ = made.stage.reads(Interval(0, 2), Interval(0, 1))
    return ceil(rows.length / max(two.length - rows.length, 1))


def _cost(made: Pass, found: Cut) -> float:
    """Work, with what is done twice, over the workers."""
    height, width = made.stage.shape
    part = Part((), Interval(0, min(found.rows, height)), Interval(0, min(found.columns, width)))
    whole = made.stage.reads(Interval(0, height), Interval(0, width))
    near = made.stage.reads(part.rows, part.columns)
    share = 1.0
    for own, all_of, size, full in zip(near, whole, (part.rows.length, part.columns.length), (height, width), strict=True):
        share *= (own.length / size) / (all_of.length / full)
    return share / found.workers
