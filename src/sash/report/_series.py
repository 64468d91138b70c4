"""A timeline thinned for drawing: few enough points for a page, and every peak kept."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

from sash.cost import Category, Cost, Phase, Timeline
from sash.report._figures import write_shapes

Run = tuple[Phase, int, int]
"""A phase and the half-open range of moments it lasts."""


def series(cost: Cost, measured: Timeline | None, points: int, largest: int) -> dict[str, Any]:
    """What the page's script draws of one result, ready for JSON.

    A timeline of more than `points` moments is cut into `points` stretches of equal length, each drawn as its highest moment;
    each point lists its `largest` blocks. Names are stored once and referred to by index.
    """
    timeline = cost.timeline
    drawn = highest(timeline.levels, points)
    by_category = {category: levels for category in Category if any(levels := timeline.levels_of(category))}
    names: dict[str, int] = {}
    blocks: dict[int, int] = {}

    def index_of(name: str) -> int:
        return names.setdefault(name, len(names))

    tops = [[blocks.setdefault(block, len(blocks)) for block in top] for top in largest_alive(timeline, drawn, largest)]
    return {
        "moments": len(timeline.moments),
        "x": drawn,
        "total": [timeline.levels[at] for at in drawn],
        "levels": [{"category": category.value, "bytes": [levels[at] for at in drawn]} for category, levels in by_category.items()],
        "module": [index_of(timeline.moments[at].module) for at in drawn],
        "operator": [index_of(timeline.moments[at].operator) for at in drawn],
        "top": tops,
        "blocks": [_describe(timeline, block, index_of) for block in blocks],
        "phases": [[phase.value, start, stop] for phase, start, stop in runs(timeline)],
        "peak": drawn.index(timeline.peak_moment) if drawn else None,
        "measured": _overlay(timeline, measured, points) if measured and measured.moments else None,
        "names": list(names),
    }


def highest(levels: Sequence[int], points: int) -> list[int]:
    """Index of the first highest level in each of `points` stretches; every index where there are no more than that."""
    count = min(points, len(levels))
    edges = [len(levels) * edge // count for edge in range(count + 1)] if count else [0]
    return [max(range(start, stop), key=levels.__getitem__) for start, stop in pairwise(edges)]


def largest_alive(timeline: Timeline, moments: Sequence[int], count: int) -> list[list[int]]:
    """Indices of the `count` largest blocks alive in each of the given moments, which ascend.

    One sweep: a heap by size from which dead blocks are dropped when they surface. `Timeline.alive` asks every block at every moment.
    """
    blocks = timeline.blocks
    births = sorted(range(len(blocks)), key=lambda index: blocks[index].born)
    heap: list[tuple[int, int]] = []
    entered = 0
    found = []
    for moment in moments:
        while entered < len(births) and blocks[births[entered]].born <= moment:
            index = births[entered]
            heapq.heappush(heap, (-blocks[index].bytes, index))
            entered += 1
        top: list[tuple[int, int]] = []
        while heap and len(top) < count:
            entry = heapq.heappop(heap)
            if blocks[entry[1]].died > moment:
                top.append(entry)
        found.append([index for _, index in top])
        for entry in top:
            heapq.heappush(heap, entry)
    return found


def runs(timeline: Timeline) -> list[Run]:
    """The phases in turn, as half-open ranges of moments."""
    found: list[Run] = []
    start = 0
    for phase, stretch in groupby(timeline.moments, key=lambda moment: moment.phase):
        stop = start + sum(1 for _ in stretch)
        found.append((phase, start, stop))
        start = stop
    return found


def _overlay(timeline: Timeline, measured: Timeline, points: int) -> dict[str, list[float]]:
    """The measured levels on the forecast's axis.

    A real step makes other operator calls than a traced one, so each phase is stretched over the forecast's phase;
    where the two do not have the same phases in turn, the whole over the whole.
    """
    ours, theirs = runs(timeline), runs(measured)
    if [run[0] for run in ours] != [run[0] for run in theirs]:
        ours, theirs = [(Phase.FORWARD, 0, len(timeline.moments))], [(Phase.FORWARD, 0, len(measured.moments))]
    xs, levels = [], []
    drawn = iter(highest(measured.levels, points))
    at = next(drawn, None)
    for (_, start, stop), (_, their_start, their_stop) in zip(ours, theirs, strict=True):
        scale = (stop - start) / (their_stop - their_start)
        while at is not None and at < their_stop:
            xs.append(round(start + (at - their_start) * scale, 2))
            levels.append(measured.levels[at])
            at = next(drawn, None)
    return {"x": xs, "bytes": levels}


def _describe(timeline: Timeline, index: int, index_of) -> list[Any]:
    block = timeline.blocks[index]
    shape = write_shapes((block.shape,)) if block.shape else ""
    return [block.bytes, block.category.value, index_of(block.module), index_of(block.operator), shape, index_of(block.kept_for)]
