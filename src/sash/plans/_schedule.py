"""Which values to keep for backward and which calls to run again: the least extra time inside a byte target, by integer programming.

Forward is cut twice: into a few coarse segments, each of many fine ones. A dropped value comes back in one of two ways. *Early*: with all
others of its coarse segment, when the segment's backward starts; *late*: with its fine segment. Late values are computed from kept and
early ones, early values from kept ones, through calls that run again once for each way: a call on both ways runs twice, which is what
nested checkpoints do. In the worst case a segment's values come back all at once, so the bytes of any moment are linear in the choices.
Several cuts are tried, and `simulate` tells what each solution really does.

Source of the idea of an integer program over recomputation: Jain et al., Checkmate (MLSys 2020), equations 1-8; the two cuts stand in for
its quadratic number of variables.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from sash.plans._graph import Fact, Graph, Node

MIB = float(1 << 20)
"""The program counts in it: its rows should lie near 1."""
SMALL_SHARE = 2e-4
"""Of all saved bytes: smaller values are kept without asking."""
GAP = 0.01
"""Solutions within this share of the best bound are good enough."""


@dataclass(frozen=True)
class Cut:
    """Numbers of the calls that start a coarse and a fine segment; every coarse border is a fine one."""

    coarse: tuple[int, ...]
    fine: tuple[int, ...]

    def coarse_of(self, node: Node) -> int:
        """The coarse segment that a call lies in."""
        return bisect_right(self.coarse, node.number)

    def fine_of(self, node: Node) -> int:
        """The fine segment that a call lies in."""
        return bisect_right(self.fine, node.number)


@dataclass(frozen=True, eq=False)
class Schedule:
    """A choice of what autograd shall not hold, and of what is held or run again instead."""

    drop: frozenset[Fact]
    keep: frozenset[Fact]
    """Held because dropped ones are computed from them."""
    replay: frozenset[Node]
    segments: dict[Node, tuple[int, ...]]
    """With whom a call's dropped values come back: (coarse,) or (coarse, fine)."""


class Problem:
    """What there is to choose in one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.moments = len(graph.levels)
        self.until = _needed_until(graph)
        saved = [fact for fact in graph.facts if fact.released > fact.freed]
        small = SMALL_SHARE * sum(fact.bytes for fact in saved)
        possible = _recomputable(graph)
        self.droppable = [fact for fact in saved if fact.bytes > small and fact.node in possible]
        chosen = set(self.droppable)
        self.always = [fact for fact in saved if fact not in chosen]
        """Held by autograd whatever is chosen."""
        self.small = small
        self.nodes = _ancestors(self.droppable, possible)
        """Calls that may be worth running again, in order."""

    @cached_property
    def base(self) -> np.ndarray:
        """Bytes in each moment with nothing kept that can be dropped."""
        return np.array(self.graph.levels, dtype=np.int64) + _profile(((f.bytes, f.freed, f.released) for f in self.always), self.moments)

    @cached_property
    def carried(self) -> np.ndarray:
        """The same between each moment and the one before."""
        return np.array(self.graph.carried, dtype=np.int64) + _profile(
            ((f.bytes, f.freed + 1, f.released) for f in self.always), self.moments
        )

    def span(self, fact: Fact) -> tuple[int, int]:
        """Moments in which keeping it takes memory that dropping it would not."""
        return fact.freed, max(fact.released, self.until[fact] if fact.released == 0 else 0)

    def borders(self, count: int) -> tuple[int, ...]:
        """Calls that start a segment: about `count` segments of like saved bytes, cut where little passes; 0 for the finest cut."""
        if count == 0:
            return tuple(sorted({fact.node.number + 1 for fact in self.droppable}))
        crossing = self._crossing
        weight = np.zeros(len(self.graph.nodes) + 1)
        for fact in self.droppable:
            weight[fact.node.number] += fact.bytes
        total = np.cumsum(weight)
        room = total[-1] / count / 3
        found = set()
        for part in range(1, count):
            aim = total[-1] * part / count
            near = np.flatnonzero(np.abs(total - aim) <= room)
            if len(near):
                found.add(int(near[np.argmin(crossing[near + 1])]) + 1)
        return tuple(sorted(found))

    @cached_property
    def _crossing(self) -> np.ndarray:
        """Bytes made before each call and read by it or a later one."""
        last: dict[Fact, int] = {}
        for node in self.graph.nodes:
            for fact in node.reads:
                last[fact] = node.number
        crossing = np.zeros(len(self.graph.nodes) + 2)
        for fact, at in last.items():
            crossing[fact.node.number + 1] += fact.bytes
            crossing[at + 1] -= fact.bytes
        return np.cumsum(crossing)

    def everything(self) -> Schedule:
        """Nothing dropped."""
        return Schedule(frozenset(), frozenset(), frozenset(), {})

    def cuts(self) -> Iterator[Cut]:
        """Cuts to try, the one first that was best most often."""
        seen = set()
        for coarse, fine in ((6, 48), (12, 48), (3, 24), (4, 0), (8, 0), (16, 0), (32, 0), (1, 0), (20, 80), (10, 80)):
            outer = self.borders(coarse) if coarse > 1 else ()
            cut = Cut(outer, tuple(sorted({*outer, *self.borders(fine)})))
            if cut not in seen:
                seen.add(cut)
                yield cut


def solve(problem: Problem, target: int | None, cut: Cut, seconds: float, below_s: float = np.inf) -> Schedule | None:
    """The schedule with the least extra time whose worst case stays within `target` bytes, or with the least peak where that is None.

    None where there is none with less than `below_s` extra time, or none was found in `seconds`.
    """
    return _Model(problem, target, cut).solve(seconds, below_s)


class _Model:
    """Variables: facts kept; facts that come back early; calls that run again for early values, and for late ones; the peak, if free."""

    def __init__(self, problem: Problem, target: int | None, cut: Cut) -> None:
        self.problem = problem
        self.cut = cut
        self.target = target
        facts = dict.fromkeys(problem.droppable)
        for node in problem.nodes:
            facts.update(dict.fromkeys(node.reads))
        count = 0

        def number(items: Iterable) -> dict:
            nonlocal count
            numbered = {item: count + index for index, item in enumerate(items)}
            count += len(numbered)
            return numbered

        self.keep: dict[Fact, int] = number(facts)
        self.early: dict[Fact, int] = number(problem.droppable)
        self.again: dict[Node, int] = number(problem.nodes)
        self.late: dict[Node, int] = number(problem.nodes)
        self.peak = count
        self.size = count + (target is None)
        self.rows: list[tuple[dict[int, float], float, float]] = []
        self._dependencies()
        self._memory()

    def _dependencies(self) -> None:
        cut = self.cut
        for fact, early in self.early.items():
            self.rows.append(({self.keep[fact]: 1.0, early: 1.0, self.late[fact.node]: 1.0}, 1.0, np.inf))
            self.rows.append(({early: -1.0, self.again[fact.node]: 1.0}, 0.0, np.inf))
        for node in self.problem.nodes:
            for fact in node.reads:
                row = {self.keep[fact]: 1.0, self.again[node]: -1.0}
                if cut.coarse_of(fact.node) == cut.coarse_of(node) and fact.node in self.again:
                    row[self.again[fact.node]] = 1.0
                self.rows.append((row, 0.0, np.inf))
                row = {self.keep[fact]: 1.0, self.late[node]: -1.0}
                if fact in self.early and cut.coarse_of(fact.node) == cut.coarse_of(node):
                    row[self.early[fact]] = 1.0
                if cut.fine_of(fact.node) == cut.fine_of(node) and fact.node in self.late:
                    row[self.late[fact.node]] = 1.0
                self.rows.append((row, 0.0, np.inf))

    def _memory(self) -> None:
        problem = self.problem
        coarse, fine = self._back(self.cut.coarse_of), self._back(self.cut.fine_of)
        events: dict[int, list[tuple[int, float]]] = {}
        constant = np.zeros(problem.moments + 1)

        def add(variable: int, size: float, start: int, stop: int) -> None:
            if stop > start:
                events.setdefault(start, []).append((variable, size))
                events.setdefault(stop, []).append((variable, -size))

        for fact, variable in self.keep.items():
            add(variable, fact.bytes, *problem.span(fact))
        for fact, early in self.early.items():
            # Late: bytes x (1 - kept - early).
            constant[fine[fact]] += fact.bytes
            constant[fact.released] -= fact.bytes
            add(self.keep[fact], -fact.bytes, fine[fact], fact.released)
            add(early, fact.bytes, coarse[fact], fine[fact])
        fixed = problem.base + np.cumsum(constant)[:-1]
        stops = sorted({0, *events})
        current: dict[int, float] = {}
        seen: dict[frozenset, float] = {}
        for start, stop in zip(stops, [*stops[1:], problem.moments], strict=True):
            for variable, size in events.get(start, ()):
                current[variable] = current.get(variable, 0.0) + size
                if abs(current[variable]) < 0.5:
                    del current[variable]
            if stop > start:
                key = frozenset(current.items())
                seen[key] = max(seen.get(key, 0.0), float(fixed[start:stop].max()))
        for key, level in seen.items():
            row = {variable: size / MIB for variable, size in key}
            if self.target is None:
                row[self.peak] = -1.0
                self.rows.append((row, -np.inf, -level / MIB))
            elif level + sum(max(size, 0.0) for _, size in key) > self.target:
                self.rows.append((row, -np.inf, (self.target - level) / MIB))

    def _back(self, segment_of: Callable[[Node], int]) -> dict[Fact, int]:
        """First moment in which a dropped fact can come back: when anything that it leads to in its segment is asked for."""
        first: dict[Fact, int] = {}
        readers: dict[Fact, list[Node]] = {}
        for node in self.problem.nodes:
            for fact in node.reads:
                readers.setdefault(fact, []).append(node)
        for fact in sorted(self.keep, key=lambda fact: -fact.node.number):
            moments = fact.wanted[:1]
            for node in readers.get(fact, ()):
                if segment_of(node) == segment_of(fact.node):
                    moments = moments + [first[made] for made in node.makes if made in first]
            if moments:
                first[fact] = min(moments)
        return first

    def solve(self, seconds: float, below_s: float) -> Schedule | None:
        cost = np.zeros(self.size)
        total = sum(fact.bytes for fact in self.keep) or 1
        for ways in (self.again, self.late):
            for node, variable in ways.items():
                cost[variable] = node.again_s * 1e3 + 1e-6
        for fact, variable in self.keep.items():
            cost[variable] = 1e-3 * fact.bytes / total
        if np.isfinite(below_s):
            self.rows.append(({variable: float(value) for variable, value in enumerate(cost) if value >= 1e-6}, -np.inf, below_s * 1e3))
        integer, lower, upper = np.ones(self.size), np.zeros(self.size), np.ones(self.size)
        if self.target is None:
            cost *= 1e-6
            cost[self.peak], integer[self.peak], upper[self.peak] = 1.0, 0, np.inf
        for fact, variable in self.keep.items():
            if fact.overwritten:
                upper[variable] = 0.0
        rows, columns, values = [], [], []
        for index, (row, _, _) in enumerate(self.rows):
            rows += [index] * len(row)
            columns += row
            values += row.values()
        matrix = csr_matrix((values, (rows, columns)), shape=(len(self.rows), self.size))
        # scipy's stubs know single numbers only.
        least, most = np.array([row[1] for row in self.rows]), np.array([row[2] for row in self.rows])
        limits = LinearConstraint(matrix, least, most)  # pyright: ignore[reportArgumentType]
        options = {"time_limit": seconds, "mip_rel_gap": GAP}
        bounds = Bounds(lower, upper)  # pyright: ignore[reportArgumentType]
        found = milp(cost, integrality=integer, bounds=bounds, constraints=limits, options=options)
        return None if found.x is None else self._read(found.x)

    def _read(self, x: np.ndarray) -> Schedule:
        kept = {fact for fact, variable in self.keep.items() if x[variable] > 0.5}
        drop = frozenset(fact for fact in self.problem.droppable if fact not in kept)
        early = {fact.node for fact in drop if x[self.early[fact]] > 0.5}
        segments = {}
        for node in {fact.node for fact in drop}:
            path = (self.cut.coarse_of(node), self.cut.fine_of(node))
            segments[node] = path[:1] if node in early else path
        return prune(drop, kept, segments)


def prune(drop: frozenset[Fact], kept: set[Fact], segments: dict[Node, tuple[int, ...]]) -> Schedule:
    """The calls that bring the dropped facts back from the kept ones, and of the kept ones those that are read on the way."""
    replay: set[Node] = set()
    sources: set[Fact] = set()
    waiting = [fact.node for fact in drop]
    while waiting:
        node = waiting.pop()
        if node in replay:
            continue
        replay.add(node)
        for fact in node.reads:
            if fact in kept and not fact.overwritten:
                sources.add(fact)
            else:
                waiting.append(fact.node)
    return Schedule(drop, frozenset(sources), frozenset(replay), segments)


def _profile(spans: Iterable[tuple[int, int, int]], moments: int) -> np.ndarray:
    change = np.zeros(moments + 1, dtype=np.int64)
    for size, start, stop in spans:
        if stop > start:
            change[start] += size
            change[min(stop, moments)] -= size
    return np.cumsum(change)[:-1]


def _needed_until(graph: Graph) -> dict[Fact, int]:
    """Moment up to which a fact may be read by calls that run again."""
    until = {fact: fact.released for fact in graph.facts}
    for node in reversed(graph.nodes):
        last = max((until[fact] for fact in node.makes), default=0)
        for fact in node.reads:
            until[fact] = max(until[fact], last) if fact.released == 0 else until[fact]
    return until


def _recomputable(graph: Graph) -> set[Node]:
    """Calls that can run again: what they read can be kept or computed again."""
    found: set[Node] = set()
    for node in graph.nodes:
        if node.replayable and all(not fact.overwritten or fact.node in found for fact in node.reads):
            found.add(node)
    return found


def _ancestors(facts: list[Fact], possible: set[Node]) -> list[Node]:
    found: set[Node] = set()
    waiting = [fact.node for fact in facts]
    while waiting:
        node = waiting.pop()
        if node in possible and node not in found:
            found.add(node)
            waiting += [fact.node for fact in node.reads]
    return sorted(found, key=lambda node: node.number)
